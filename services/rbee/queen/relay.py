"""Following the event streams of hives and workers and passing on what the client should see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    BadHiveResponse,
    GenerationTimeout,
    RbeeError,
    RequestTimeout,
    WorkerCrashed,
    WorkerStartFailed,
    error_from_fields,
)
from rbee.core.events import Event, EventReader, encode_event
from rbee.queen.ports import Events, HiveApi

_FAREWELL_S = 0.1
_TOKEN = b'data: {"token":'
"""How our workers begin a token event; written otherwise it is found by decoding."""
_NARRATION = b"event: narration\n"
Send = Callable[[bytes], None]
"""Told whole events as bytes."""


class Sink(Protocol):
    """Where a task's events go."""

    def send(self, raw: bytes) -> None:
        """Send whole events, waiting where the client is behind."""

    def try_send(self, raw: bytes) -> bool:
        """Send whole events if that is possible without waiting."""


@dataclass
class LoadingProgress:
    """How far a worker has come with loading, as last reported."""

    layers_loaded: int = 0
    layers_total: int = 0
    is_ready: bool = False
    error: RbeeError | None = None


class HiveLost(BadHiveResponse):
    """The hive ended under a request to it; told as the bad answer that it is when nothing else helps."""


@contextmanager
def hive_answers(hive: HiveApi) -> Iterator[None]:
    """A connection to the hive that breaks in the middle of a task is a bad answer.

    Raises:
        HiveLost: its process has gone, as far as a connection tells. BadHiveResponse: anything else.
    """
    try:
        yield
    except TransportFailure as failure:
        kind = HiveLost if failure.kind in ("refused", "reset") else BadHiveResponse
        raise kind(hive.host, failure.reason) from failure


def relay_download(hive: HiveApi, events: Events, send: Send) -> str:
    """Pass a download's progress and narration on until it is complete; returns the local path.

    Raises:
        the error the hive reports; BadHiveResponse when the stream ends without an outcome.
    """
    for event in events:
        if event.is_done_marker:
            break
        if event.name:
            send(event.raw)
            continue
        data = _data_of(event, hive)
        if "error" in data:
            raise error_from_fields(data["error"])
        if data.get("stage") == "complete":
            return str(data.get("local_path"))
        send(encode_event(data, "progress"))
    raise BadHiveResponse(hive.host, "the download's stream ended without an outcome")


def relay_quality(hive: HiveApi, events: Events, send: Send) -> dict[str, Any]:
    """Pass the progress of a comparison with float32 on until its end; returns the figures.

    Raises:
        the error the hive reports; BadHiveResponse when the stream ends without an outcome.
    """
    figures: dict[str, Any] | None = None
    for stage, data in _stages(hive, events, send):
        if stage == "measured":
            figures = data
        elif stage == "complete":
            break
        else:
            send(encode_event({"stage": stage, **data}, "progress"))
    if figures is None:
        raise BadHiveResponse(hive.host, "the comparison's stream ended without an outcome")
    return figures


def relay_verification(hive: HiveApi, events: Events, send: Send) -> list[dict[str, Any]]:
    """Pass the progress of a verification and each verdict on until the end; returns the verdicts.

    Raises:
        the error the hive reports, ModelDamaged among them; BadHiveResponse when the stream has no outcome.
    """
    verdicts: list[dict[str, Any]] = []
    for stage, data in _stages(hive, events, send):
        if stage == "complete":
            return verdicts
        if stage == "verified":
            verdicts.append(data)
            send(encode_event(data, "verdict"))
        else:
            send(encode_event({"stage": stage, **data}, "progress"))
    raise BadHiveResponse(hive.host, "the verification's stream ended without an outcome")


def _stages(hive: HiveApi, events: Events, send: Send) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The stages of a stream with what they carry; narration is passed on, an error raised."""
    for event in events:
        if event.is_done_marker:
            return
        if event.name:
            send(event.raw)
            continue
        data = _data_of(event, hive)
        if "error" in data:
            raise error_from_fields(data["error"])
        yield data.pop("stage", None), data


def relay_startup(hive: HiveApi, events: Events, send: Send) -> None:
    """Pass the start-up of a worker on until its HTTP is up.

    Raises:
        the error the hive reports; BadHiveResponse when the stream ends without ``[DONE]``.
    """
    for event in events:
        if event.is_done_marker:
            return
        if event.name:
            send(event.raw)
            continue
        data = _data_of(event, hive)
        if "error" in data:
            raise error_from_fields(data["error"])
        send(encode_event(data, "progress"))
    raise BadHiveResponse(hive.host, "the start-up stream of the worker ended early")


def relay_loading(events: Events, send: Send, progress: LoadingProgress) -> None:
    """Pass layers on as they are loaded and keep ``progress`` up to date until the stream ends."""
    for event in events:
        if event.is_done_marker:
            return
        if event.name == "narration":
            send(event.raw)
            continue
        try:
            data = event.json()
        except ValueError:
            continue
        stage = data.get("stage") if isinstance(data, dict) else None
        if stage == "loading_to_vram":
            progress.layers_loaded = int(data.get("layers_loaded") or 0)
            progress.layers_total = int(data.get("layers_total") or 0)
            send(encode_event(data, "progress"))
        elif stage == "ready":
            progress.is_ready = True
            return
        elif stage == "error":
            fields = data.get("error")
            progress.error = (
                error_from_fields(fields)
                if isinstance(fields, dict)
                else WorkerStartFailed(str(data.get("message") or "loading failed"))
            )
            return


class InferenceRelay:
    """Passes a worker's answer on byte for byte, counting tokens, until its terminal event.

    What a worker sends are nearly always whole events of tokens and narration; these are counted and passed
    on unread, by the event loop itself while the client keeps up.

    Args:
        deadline: when ``timeout_seconds`` is over, on the monotonic clock.
        stall_s: longest wait for the next token.
    """

    def __init__(self, worker_id: str, timeout_seconds: int, deadline: float, stall_s: float) -> None:
        self.tokens = 0
        self.deadline = deadline
        self._worker_id = worker_id
        self._timeout_seconds = timeout_seconds
        self._stall_s = stall_s
        self._reader = EventReader()
        self._unsent: list[bytes] = []
        self._terminal: tuple[bytes, str | None] | None = None
        self.restart_stall()

    def restart_stall(self) -> None:
        """The wait for the next token begins now."""
        self._stalled_at = time.monotonic() + self._stall_s

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Limits the block by whichever of the two limits comes first.

        Raises:
            RequestTimeout, GenerationTimeout
        """
        timer = gevent.Timeout(self._left_s())
        try:
            with timer:
                yield
        except gevent.Timeout as fired:
            if fired is not timer:
                raise
            raise self._overdue() from None

    def run(self, events: Events, sink: Sink) -> tuple[bytes, str | None]:
        """Relay; returns the terminal event, not yet sent, and its error code if it has one.

        Raises:
            WorkerCrashed: the stream ended or broke without a terminal event.
            RequestTimeout, GenerationTimeout
        """
        while True:
            # One timer serves many tokens: when it rings, tokens may have come since it was set.
            timer = gevent.Timeout(self._left_s())
            try:
                with timer:
                    return self._run(events, sink)
            except gevent.Timeout as fired:
                if fired is not timer:
                    raise
                if min(self._stalled_at, self.deadline) <= time.monotonic():
                    raise self._overdue() from None

    def _run(self, events: Events, sink: Sink) -> tuple[bytes, str | None]:
        """May be called again after it was interrupted at any point: nothing is lost or sent twice."""

        try_send, stall_s, monotonic = sink.try_send, self._stall_s, time.monotonic

        def pass_on(block: bytes) -> bool:
            # One token, as nearly every block is.
            if block.startswith(_TOKEN) and block.find(b"\n\n") == len(block) - 2:
                tokens = 1
            else:
                tokens = block.count(_TOKEN)
                if not _is_plain(block, tokens):
                    return False
            if not try_send(block):
                return False
            if tokens:
                self.tokens += tokens
                self._stalled_at = monotonic() + stall_s
            return True

        while True:
            while self._unsent:
                sink.send(self._unsent[0])
                del self._unsent[0]
            if self._terminal is not None:
                _read_to_end(events)
                return self._terminal
            try:
                block = events.follow(pass_on)
            except TransportFailure:
                block = b""
            if not block:
                raise WorkerCrashed(self._worker_id, self.tokens)
            tokens = block.count(_TOKEN)
            if _is_plain(block, tokens):
                self._count(tokens)
                self._unsent.append(block)
            else:
                self._look_at(block)

    def _look_at(self, block: bytes) -> None:
        """Take a block event by event, up to the terminal one."""
        for event in self._reader.feed(block):
            if event.is_done_marker:
                raise WorkerCrashed(self._worker_id, self.tokens)
            if event.name:
                if event.name != "started":
                    self._unsent.append(event.raw)
                continue
            data = _object_of(event)
            if "done" in data:
                self._terminal = event.raw, None
                return
            if "error" in data:
                error = data["error"]
                code = str(error.get("code")) if isinstance(error, dict) else "INTERNAL_ERROR"
                self._terminal = event.raw, code
                return
            if "token" in data:
                self._count(1)
            self._unsent.append(event.raw)

    def _count(self, tokens: int) -> None:
        if tokens:
            self.tokens += tokens
            self.restart_stall()

    def _left_s(self) -> float:
        return max(0.001, min(self._stalled_at, self.deadline) - time.monotonic())

    def _overdue(self) -> RequestTimeout | GenerationTimeout:
        if self.deadline <= self._stalled_at:
            return RequestTimeout(self._timeout_seconds, self.tokens)
        return GenerationTimeout(self.tokens, self._stall_s)


def _is_plain(block: bytes, tokens: int) -> bool:
    """Whether a block holds tokens and narration only, written as our workers write them."""
    narrations = block.count(_NARRATION)
    return tokens + narrations == block.count(b"\n\n") and block.startswith((_TOKEN, _NARRATION))


def _read_to_end(events: Events) -> None:
    """Take the closing marker too, so that the connection can serve the next request."""
    try:
        with gevent.Timeout(_FAREWELL_S, False):
            while events.next_block():
                pass
    except TransportFailure:
        return


def _object_of(event: Event) -> dict[str, Any]:
    try:
        data = event.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _data_of(event: Event, hive: HiveApi) -> dict[str, Any]:
    try:
        data = event.json()
    except ValueError:
        raise BadHiveResponse(hive.host, "an event that is not JSON") from None
    if not isinstance(data, dict):
        raise BadHiveResponse(hive.host, "an event that is not an object")
    return data
