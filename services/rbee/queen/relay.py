"""Following the event streams of hives and workers and passing on what the client should see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from rbee.core.events import Event, encode_event
from rbee.queen.ports import Events, HiveApi

_FAREWELL_S = 0.1
Send = Callable[[bytes], None]
"""Told whole events as bytes."""


@dataclass
class LoadingProgress:
    """How far a worker has come with loading, as last reported."""

    layers_loaded: int = 0
    layers_total: int = 0
    is_ready: bool = False
    error: RbeeError | None = None


@contextmanager
def hive_answers(hive: HiveApi) -> Iterator[None]:
    """A connection to the hive that breaks in the middle of a task ends it as a bad answer."""
    try:
        yield
    except TransportFailure as failure:
        raise BadHiveResponse(hive.host, failure.reason) from failure


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

    Args:
        deadline: when ``timeout_seconds`` is over, on the monotonic clock.
        stall_s: longest wait for the next token.
    """

    def __init__(self, worker_id: str, timeout_seconds: int, deadline: float, stall_s: float) -> None:
        self.tokens = 0
        self._worker_id = worker_id
        self._timeout_seconds = timeout_seconds
        self.deadline = deadline
        self._stall_s = stall_s
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
        limit = min(self._stalled_at, self.deadline)
        timer = gevent.Timeout(max(0.001, limit - time.monotonic()))
        try:
            with timer:
                yield
        except gevent.Timeout as fired:
            if fired is not timer:
                raise
            if self.deadline <= self._stalled_at:
                raise RequestTimeout(self._timeout_seconds, self.tokens) from None
            raise GenerationTimeout(self.tokens, self._stall_s) from None

    def run(self, events: Events, send: Send) -> tuple[bytes, str | None]:
        """Relay; returns the terminal event, not yet sent, and its error code if it has one.

        Raises:
            WorkerCrashed: the stream ended or broke without a terminal event.
            RequestTimeout, GenerationTimeout
        """
        source = iter(events)
        while True:
            try:
                with self.limited():
                    event = next(source, None)
            except TransportFailure:
                event = None
            if event is None or event.is_done_marker:
                raise WorkerCrashed(self._worker_id, self.tokens)
            if event.name:
                if event.name != "started":
                    send(event.raw)
                continue
            data = _object_of(event)
            if "done" in data:
                _read_to_end(source)
                return event.raw, None
            if "error" in data:
                _read_to_end(source)
                error = data["error"]
                return event.raw, str(error.get("code")) if isinstance(error, dict) else "INTERNAL_ERROR"
            if "token" in data:
                self.tokens += 1
                self.restart_stall()
            send(event.raw)


def _read_to_end(source: Iterator[Event]) -> None:
    """Take the closing marker too, so that the connection can serve the next request."""
    try:
        with gevent.Timeout(_FAREWELL_S, False):
            for _ in source:
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
