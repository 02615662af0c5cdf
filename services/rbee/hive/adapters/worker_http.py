"""Calls to a worker over kept-open HTTP connections; small, because every list of the hive makes them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket

from rbee.core.clock import parse_utc
from rbee.core.events import EventReader
from rbee.core.lifecycle import WorkerState
from rbee.hive.ports import NoAnswer, WorkerReport

_KEPT_CONNECTIONS = 4
_BLOCK = 65536
_LARGEST_ANSWER = 1024 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})", re.I)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.I)


class HttpWorkerConnection:
    """Implements WorkerConnection.

    Args:
        host: where the worker listens, as seen from this machine.
        key: the worker's own key.
        correlation_id: asked before each call for the id of the request behind it.
    """

    def __init__(
        self, host: str, port: int, key: str, correlation_id: Callable[[], str | None] = lambda: None
    ) -> None:
        self._host, self._port = host, port
        self._correlation_id = correlation_id
        self._headers = {"Authorization": f"Bearer {key}"}
        self._kept: list[socket.socket] = []
        self._is_closed = False

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
        connection = http.client.HTTPConnection(self._host, self._port, timeout=silence_s)
        try:
            with _foreign_errors_told():
                connection.sock = socket.create_connection((self._host, self._port), silence_s)
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
        self._is_closed = True
        while self._kept:
            self._kept.pop().close()

    def _call(self, method: str, path: str, timeout_s: float, body: Any = None) -> Any:
        """The JSON of the answer; one time limit for the whole call, connecting included."""
        request = self._request(method, path, body)
        try:
            with gevent.Timeout(timeout_s), _foreign_errors_told():
                while self._kept:
                    with contextlib.suppress(_ClosedMeanwhile):
                        return self._exchange(self._kept.pop(), request, is_kept=True)
                connection = socket.create_connection((self._host, self._port), timeout_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._exchange(connection, request)
        except gevent.Timeout:
            raise NoAnswer("timeout", f"no answer within {timeout_s:g} s") from None

    def _request(self, method: str, path: str, body: Any) -> bytes:
        raw = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())
        if (correlation := self._correlation_id()) is not None:
            head += f"X-Correlation-ID: {correlation}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        return head.encode("ascii") + b"\r\n" + raw

    def _exchange(self, connection: socket.socket, request: bytes, is_kept: bool = False) -> Any:
        is_reusable = False
        try:
            try:
                connection.sendall(request)
                first = connection.recv(_BLOCK)
            except ConnectionError:
                first = b""
            if not first:
                # The worker may close a kept connection at any time; that says nothing about the worker.
                raise _ClosedMeanwhile() if is_kept else ConnectionResetError()
            status, body, is_reusable = _read_answer(connection, first)
            if status >= 400:
                raise NoAnswer("unreadable", f"status {status}")
            return json.loads(body)
        finally:
            if is_reusable and not self._is_closed and len(self._kept) < _KEPT_CONNECTIONS:
                self._kept.append(connection)
            else:
                connection.close()


def _read_answer(connection: socket.socket, received: bytes) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection may be used again.

    Only what our services send is understood: HTTP/1.1 with Content-Length. A general client costs four
    times as much, and lists of workers, which are on the way of every request, are made of these calls.
    """
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += _more(connection, len(received))
    head, body = received[:end], received[end + 4 :]
    status, length = _STATUS.match(head), _LENGTH.search(head)
    if status is None or length is None:
        raise NoAnswer("unreadable", "not the answer of a worker")
    missing = int(length.group(1)) - len(body)
    while missing > 0:
        piece = _more(connection, len(body))
        body += piece
        missing -= len(piece)
    return int(status.group(1)), body, missing == 0 and _CLOSE.search(head) is None


def _more(connection: socket.socket, so_far: int) -> bytes:
    piece = connection.recv(_BLOCK)
    if not piece:
        raise ConnectionResetError()
    if so_far + len(piece) > _LARGEST_ANSWER:
        raise NoAnswer("unreadable", "the answer is too large")
    return piece


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
        if report.idle_since is not None:
            parse_utc(report.idle_since)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NoAnswer("unreadable", "the answer lacks the fields of a worker") from None
    return report
