"""Sending files over real sockets the way web servers do, with ranges, and failing on request."""

from __future__ import annotations

import fcntl
import hashlib
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Literal, Self

BLOCK = 64 * 1024


@dataclass
class Request:
    """One request as the server saw it; ``sent`` counts body bytes, times are ``time.monotonic()``."""

    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    at: float
    status: int = 0
    sent: int = 0
    is_finished: bool = False
    ended: float = 0.0
    """When the answer was complete or broken off."""


@dataclass
class Fault:
    """What goes wrong with the transfer of a file.

    reset     the connection is reset when ``at`` (a share of the whole file) is reached, at once when past it
    close     the same with an orderly end
    stall     nothing more comes from ``at`` on, the connection stays open
    hold      the same until ``Recorder.released`` is set, then the rest comes
    throttle  ``bytes_per_s``
    flip      the byte at ``at`` has another bit
    length    ``extra`` bytes more are announced and sent than the file has
    status    ``status`` instead of the file, with ``retry_after``
    whole     ranges are ignored, the whole file is sent
    """

    kind: Literal["reset", "close", "stall", "hold", "throttle", "flip", "length", "status", "whole"]
    at: float = 0.0
    bytes_per_s: int = 1_000_000
    status: int = 503
    retry_after: int | None = None
    extra: int = 1
    times: int | None = None
    """How many transfers it spoils; None for all."""
    skip: int = 0
    """How many transfers go well before."""
    name: str = ""
    """Only files whose path ends so."""
    server: str = "files"
    """Whose answers it spoils: of the servers' labels, all but ``files`` know ``status`` only."""
    whole_only: bool = False
    """Only requests for the whole file, not for a range."""


@dataclass
class Recorder:
    """The request log and the faults of one server or of several that belong together."""

    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self.requests.clear()

    def transfers(self, name: str = "") -> list[Request]:
        """GET requests for file contents, in order of arrival; waits for those that are being answered."""
        deadline = time.monotonic() + 5
        while True:
            with self._lock:
                found = [r for r in self.requests if r.method == "GET" and r.server == "files"]
            if all(request.is_finished for request in found) or time.monotonic() > deadline:
                return [request for request in found if name in request.path]
            time.sleep(0.005)

    def faults_for(self, name: str, *, is_range: bool = False, server: str = "files") -> list[Fault]:
        """The faults of this transfer; counts it against their ``skip`` and ``times``."""
        with self._lock:
            due = []
            for fault in self.faults:
                if fault.server != server or not name.endswith(fault.name):
                    continue
                if is_range and fault.whole_only:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.times is None or fault.times > 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    due.append(fault)
            return due


class Handler(BaseHTTPRequestHandler):
    """Base of the handlers: one request per connection, every one of them recorded."""

    protocol_version = "HTTP/1.1"
    server_label = "api"
    recorder: Recorder
    request_seen: Request

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def respond(self) -> None:
        """Answer the request; implemented by each server."""
        raise NotImplementedError

    def _answer(self) -> None:
        range_, authorization = self.headers.get("Range"), self.headers.get("Authorization")
        self.request_seen = Request(
            self.server_label, self.command, self.path, range_, authorization, time.monotonic()
        )
        self.recorder.note(self.request_seen)
        try:
            self.respond()
        except (ConnectionError, TimeoutError, ValueError):
            pass  # the client went away, or the fault closed the connection
        finally:
            self.close_connection = True
            self.request_seen.ended = time.monotonic()
            self.request_seen.is_finished = True

    def send_response(self, code: int, message: str | None = None) -> None:
        self.request_seen.status = int(code)
        super().send_response(code, message)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A short answer; header names are written with underscores."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            self._write(body)

    def refuse_by(self, fault: Fault) -> None:
        """The answer of a fault of the kind ``status``."""
        extra = {} if fault.retry_after is None else {"Retry_After": str(fault.retry_after)}
        self.reply(fault.status, b"busy", **extra)

    def send_file(self, path: Path, etag: str) -> None:
        """The file, or the range asked for, spoiled by the faults that are due."""
        is_range = "Range" in self.headers
        faults = []
        if self.command == "GET":
            faults = self.recorder.faults_for(str(path), is_range=is_range)
        by_kind: dict[str, Fault] = {fault.kind: fault for fault in faults}
        if (fault := by_kind.get("status")) is not None:
            self.refuse_by(fault)
            return
        size = path.stat().st_size
        asked = None if "whole" in by_kind else self._range(size, etag)
        start, end = asked or (0, size)
        if asked is not None and start >= size:
            self.reply(416, Content_Range=f"bytes */{size}")
            return
        more = by_kind["length"].extra if "length" in by_kind else 0
        self.send_response(200 if asked is None else 206)
        if asked is not None:
            self.send_header("Content-Range", f"bytes {start}-{end + more - 1}/{size + more}")
        for name, value in (
            ("Accept-Ranges", "bytes"),
            ("ETag", f'"{etag}"'),
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(end + more - start)),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        if self.command == "GET":
            self._send_body(path, start, end, by_kind)
            self._write(b"\0" * more)

    def _range(self, size: int, etag: str) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if match is None or (condition is not None and condition != f'"{etag}"'):
            return None
        return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size

    def _send_body(self, path: Path, start: int, end: int, faults: dict[str, Fault]) -> None:
        stop, size = end, path.stat().st_size
        ending = next((faults[kind] for kind in ("reset", "close", "stall", "hold") if kind in faults), None)
        if ending is not None:
            stop = max(start, int(size * ending.at))
        flipped = int(size * faults["flip"].at) if "flip" in faults else -1
        with path.open("rb") as file:
            file.seek(start)
            self._send_until(file, min(stop, end), flipped, faults)
            if ending is not None and file.tell() >= stop:
                _ENDINGS[ending.kind](self)
                self._send_until(file, end, flipped, faults)

    def _send_until(self, file: BinaryIO, end: int, flipped: int, faults: dict[str, Fault]) -> None:
        while (position := file.tell()) < end:
            block = bytearray(file.read(min(BLOCK, end - position)))
            if position <= flipped < position + len(block):
                block[flipped - position] ^= 0x40
            self._write(bytes(block))
            if "throttle" in faults:
                self.recorder.closing.wait(len(block) / faults["throttle"].bytes_per_s)

    def _write(self, block: bytes) -> None:
        self.wfile.write(block)
        self.request_seen.sent += len(block)

    def reset(self) -> None:
        """Reset the connection once the client has everything that was sent."""
        deadline = time.monotonic() + 5
        while self._unacknowledged() and time.monotonic() < deadline:
            time.sleep(0.001)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise ConnectionResetError

    def close_early(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def stall(self) -> None:
        """Keep the connection open and silent until the client leaves or the server ends."""
        self._be_silent(self.recorder.closing)
        raise ConnectionAbortedError

    def hold(self) -> None:
        """Be silent until released."""
        self._be_silent(self.recorder.released)

    def _be_silent(self, until: threading.Event) -> None:
        self.connection.settimeout(0.02)
        while not until.is_set() and not self.recorder.closing.is_set():
            try:
                if not self.connection.recv(1):
                    raise ConnectionAbortedError
            except TimeoutError:
                continue
        self.connection.settimeout(None)

    def _unacknowledged(self) -> int:
        answer = fcntl.ioctl(self.connection, termios.TIOCOUTQ, b"\0" * 4)
        return int.from_bytes(answer, "little")


_ENDINGS: dict[str, Callable[[Handler], None]] = {
    "reset": Handler.reset,
    "close": Handler.close_early,
    "stall": Handler.stall,
    "hold": Handler.hold,
}


class Server(ThreadingHTTPServer):
    """A threaded server on a loopback port of its own."""

    daemon_threads = True

    def __init__(self, handler: type[Handler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that resets the connection is part of the tests

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Servers:
    """Several servers with one recorder; a context manager that ends them."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._servers: list[Server] = []

    def start(self, handler: type[Handler], port: int = 0, **attributes: object) -> Server:
        """Serve with a subclass of ``handler`` that knows the recorder and the attributes."""
        bound = type(handler.__name__, (handler,), {"recorder": self.recorder, **attributes})
        server = Server(bound, port)
        self._servers.append(server)
        return server

    def stop(self) -> None:
        self.recorder.closing.set()
        for server in self._servers:
            server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_digests: dict[tuple[Path, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Digest of a served file, computed once."""
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
