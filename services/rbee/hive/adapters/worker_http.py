"""Calls to a worker over kept-open HTTP connections; small, because every list of the hive makes them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import gevent

from rbee.core.events import EventReader
from rbee.core.lifecycle import WorkerState
from rbee.hive.ports import NoAnswer, WorkerReport

_KEPT_CONNECTIONS = 4
_LARGEST_ANSWER = 1024 * 1024


class HttpWorkerConnection:
    """Implements WorkerConnection.

    Args:
        host: where the worker listens, as seen from this machine.
        key: the worker's own key.
    """

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host, self._port = host, port
        self._headers = {"Authorization": f"Bearer {key}"}
        self._kept: list[http.client.HTTPConnection] = []

    def ready(self, timeout_s: float) -> WorkerReport:
        return _report(self._call("GET", "/v1/ready", timeout_s))

    def health(self, timeout_s: float) -> WorkerReport:
        body = self._call("GET", "/v1/health", timeout_s)
        report = _report(body)
        if body.get("status") == "unhealthy" and report.state in (WorkerState.IDLE, WorkerState.BUSY):
            raise NoAnswer("unhealthy", "the worker calls itself unhealthy")
        return report

    def shut_down(self, drain_s: float, timeout_s: float) -> None:
        body = {"graceful": True, "timeout_seconds": drain_s}
        self._call("POST", "/v1/admin/shutdown", timeout_s, body)

    def loading_events(self, silence_s: float) -> Iterator[dict[str, Any]]:
        connection = self._open(silence_s)
        try:
            with _foreign_errors_told():
                connection.request("GET", "/v1/loading/progress", headers=self._headers)
                answer = connection.getresponse()
                if answer.status != 200:
                    raise NoAnswer("unreadable", f"status {answer.status}")
                reader = EventReader()
                while piece := answer.read1(65536):
                    for event in reader.feed(piece):
                        if event.is_done_marker:
                            return
                        data = event.json()
                        if isinstance(data, dict):
                            yield data
        finally:
            connection.close()

    def close(self) -> None:
        while self._kept:
            self._kept.pop().close()

    def _call(self, method: str, path: str, timeout_s: float, body: Any = None) -> Any:
        """The JSON of the answer; one time limit for the whole call, connecting included."""
        try:
            with gevent.Timeout(timeout_s), _foreign_errors_told():
                while self._kept:
                    kept = self._kept.pop()
                    with contextlib.suppress(_ClosedMeanwhile):
                        return self._exchange(kept, method, path, body, is_kept=True)
                return self._exchange(self._open(timeout_s), method, path, body)
        except gevent.Timeout:
            raise NoAnswer("timeout", f"no answer within {timeout_s:g} s") from None

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, is_kept: bool = False
    ) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        headers = self._headers if raw is None else {**self._headers, "Content-Type": "application/json"}
        is_reusable = False
        try:
            try:
                connection.request(method, path, raw, headers)
                answer = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError):
                # The worker may close a kept connection at any time; that says nothing about the worker.
                if is_kept:
                    raise _ClosedMeanwhile() from None
                raise
            text = answer.read(_LARGEST_ANSWER)
            if answer.status >= 400:
                raise NoAnswer("unreadable", f"{method} {path} answered {answer.status}")
            is_reusable = answer.isclosed() and not answer.will_close
            return json.loads(text)
        finally:
            if is_reusable and len(self._kept) < _KEPT_CONNECTIONS:
                self._kept.append(connection)
            else:
                connection.close()

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)


class _ClosedMeanwhile(Exception):
    """A kept connection turned out to be closed."""


@contextlib.contextmanager
def _foreign_errors_told() -> Iterator[None]:
    try:
        yield
    except ConnectionRefusedError:
        raise NoAnswer("refused", "connection refused") from None
    except TimeoutError:
        raise NoAnswer("timeout", "no answer in time") from None
    except (OSError, http.client.HTTPException, socket.gaierror) as error:
        raise NoAnswer("reset", f"connection broken ({type(error).__name__})") from None
    except (ValueError, UnicodeDecodeError):
        raise NoAnswer("unreadable", "the answer is not JSON") from None


def _report(body: Any) -> WorkerReport:
    try:
        report = WorkerReport(
            state=WorkerState(body["state"]),
            slots_total=int(body["slots_total"]),
            slots_available=int(body["slots_available"]),
            idle_since=body.get("idle_since"),
            vram_bytes=body.get("vram_bytes"),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NoAnswer("unreadable", "the answer lacks the fields of a worker") from None
    if report.idle_since is not None and not isinstance(report.idle_since, str):
        raise NoAnswer("unreadable", "idle_since is not a time")
    return report
