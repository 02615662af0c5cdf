"""Calls to a worker over kept HTTP connections, with one time limit for the whole of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent

from rbee.core.client import ServiceClient, TransportFailure
from rbee.core.clock import parse_utc
from rbee.core.errors import RbeeError
from rbee.core.lifecycle import WorkerState
from rbee.hive.ports import NoAnswer, WorkerReport


class HttpWorkerConnection:
    """Implements WorkerConnection.

    Args:
        base_url: where the worker listens, as seen from this machine.
        key: the worker's own key.
        correlation_id: asked before each call for the id of the request behind it.
    """

    def __init__(
        self, base_url: str, key: str, correlation_id: Callable[[], str | None] = lambda: None
    ) -> None:
        self._client = ServiceClient(base_url, api_key=key, version=None, correlation_id=correlation_id)

    def ready(self, timeout_s: float) -> WorkerReport:
        with _limited(timeout_s):
            return _report(self._client.get("/v1/ready", timeout_s=timeout_s))

    def health(self, timeout_s: float) -> WorkerReport:
        with _limited(timeout_s):
            body = self._client.get("/v1/health", timeout_s=timeout_s)
            report = _report(body)
        if body.get("status") == "unhealthy" and report.state in (WorkerState.IDLE, WorkerState.BUSY):
            raise NoAnswer("unhealthy", "the worker calls itself unhealthy")
        return report

    def shut_down(self, drain_s: float, timeout_s: float) -> None:
        body = {"graceful": True, "timeout_seconds": drain_s}
        with _limited(timeout_s):
            self._client.post("/v1/admin/shutdown", body, timeout_s=timeout_s)

    def loading_events(self, silence_s: float) -> Iterator[dict[str, Any]]:
        with (
            _foreign_errors_told(),
            self._client.stream("GET", "/v1/loading/progress", read_timeout_s=silence_s) as events,
        ):
            for event in events:
                if event.is_done_marker:
                    return
                data = event.json()
                if isinstance(data, dict):
                    yield data

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def _limited(timeout_s: float) -> Iterator[None]:
    """A limit for all of a call: a worker whose bytes trickle has not answered in time either."""
    limit = gevent.Timeout(timeout_s)
    try:
        with limit, _foreign_errors_told():
            yield
    except gevent.Timeout as passed:
        if passed is not limit:
            raise
        raise NoAnswer("timeout", f"no answer within {timeout_s:g} s") from None


@contextlib.contextmanager
def _foreign_errors_told() -> Iterator[None]:
    try:
        yield
    except TransportFailure as failure:
        raise NoAnswer(failure.kind, failure.reason) from None
    except RbeeError as error:
        raise NoAnswer("unreadable", f"it answered {error.code}") from None
    except ValueError:
        raise NoAnswer("unreadable", "an event is not JSON") from None


def _report(body: Any) -> WorkerReport:
    try:
        report = WorkerReport(
            state=WorkerState(body["state"]),
            slots_total=int(body["slots_total"]),
            slots_available=int(body["slots_available"]),
            idle_since=body.get("idle_since"),
            vram_bytes=body.get("vram_bytes"),
        )
        if report.idle_since is not None:
            parse_utc(report.idle_since)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NoAnswer("unreadable", "the answer lacks the fields of a worker") from None
    return report
