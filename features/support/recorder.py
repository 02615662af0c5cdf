"""A recording proxy: passes bytes on unchanged and reads the HTTP exchanges out of what passed."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from features.support.observing import stream_events
from features.support.ports import accepts

BLOCK = 65536
LOOK_S = 0.01


@dataclass(frozen=True)
class Exchange:
    """One request and what was answered so far. Times are Unix seconds; header names are lower-case."""

    method: str
    path: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int | None
    headers: dict[str, str]
    body: bytes
    asked_unix: float

    @property
    def name(self) -> str:
        """Method and path without the query."""
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def sent(self) -> Any:
        return json.loads(self.request_body)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, Any]]:
        return stream_events(self.body)

    @property
    def error_code(self) -> str | None:
        """The code of a plain error answer."""
        try:
            code: str = json.loads(self.body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return None
        return code


class Recorder:
    """Listens on a port and connects every client to ``target``; nothing in between is changed.

    Connections are refused, as they would be at the target, until somebody listens there.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self._connections: list[_Connection] = []
        self._is_closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def exchanges(self) -> list[Exchange]:
        """Everything that passed so far, in the order in which it was asked."""
        found = [exchange for connection in list(self._connections) for exchange in connection.exchanges()]
        return sorted(found, key=lambda exchange: exchange.asked_unix)

    def close(self) -> None:
        """Accept nobody any more; connections end with their peers."""
        self._is_closed.set()
        # Closing alone does not wake the thread that waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not accepts(*self._target):
            if self._is_closed.wait(LOOK_S):
                return
        with contextlib.suppress(OSError):
            self._listener.listen()
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(_Connection(client, self._target))


class _Connection:
    """A client's connection and the one made for it."""

    def __init__(self, client: socket.socket, target: tuple[str, int]) -> None:
        self._asked: list[tuple[float, bytes]] = []
        self._answered: list[tuple[float, bytes]] = []
        try:
            server = socket.create_connection(target, 10)
        except OSError:
            client.close()
            return
        for side in (client, server):
            side.settimeout(None)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def close() -> None:
            client.close()
            server.close()

        ends = threading.Barrier(2, action=close)
        for source, sink, kept in ((client, server, self._asked), (server, client, self._answered)):
            threading.Thread(target=_pass_on, args=(source, sink, kept.append, ends), daemon=True).start()

    def exchanges(self) -> list[Exchange]:
        asked, answered = _Reader(list(self._asked)), _Reader(list(self._answered))
        found = []
        while (head := asked.head()) is not None:
            asked_unix, (method, path, _), headers = head
            body = asked.body(headers, "content-length" not in headers)
            answer = answered.head()
            while answer is not None and answer[1][1].startswith("1"):
                answer = answered.head()
            if answer is None:
                found.append(Exchange(method, path, headers, body, None, {}, b"", asked_unix))
                continue
            status, answer_headers = int(answer[1][1]), answer[2]
            is_empty = method == "HEAD" or status in (204, 304)
            content = answered.body(answer_headers, is_empty)
            found.append(Exchange(method, path, headers, body, status, answer_headers, content, asked_unix))
        return found


def _pass_on(
    source: socket.socket,
    sink: socket.socket,
    keep: Callable[[tuple[float, bytes]], None],
    ends: threading.Barrier,
) -> None:
    try:
        while piece := source.recv(BLOCK):
            keep((time.time(), piece))
            sink.sendall(piece)
    except OSError:
        pass
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    with contextlib.suppress(threading.BrokenBarrierError):
        ends.wait()


class _Reader:
    """Reads HTTP/1.1 messages out of one direction of a connection, which may end anywhere."""

    def __init__(self, pieces: list[tuple[float, bytes]]) -> None:
        self._pieces = pieces
        self._bytes = b"".join(piece for _, piece in pieces)
        self._position = 0

    def head(self) -> tuple[float, list[str], dict[str, str]] | None:
        """Arrival, words of the first line, and headers of the next message; None when there is none yet."""
        end = self._bytes.find(b"\r\n\r\n", self._position)
        if end < 0:
            return None
        arrived = self._time_at(self._position)
        first, *rest = self._bytes[self._position : end].decode("latin-1").split("\r\n")
        self._position = end + 4
        fields = (line.partition(":") for line in rest)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        return arrived, first.split(" ", 2), headers

    def body(self, headers: dict[str, str], is_empty: bool) -> bytes:
        """The body, as much of it as there is."""
        if "chunked" in headers.get("transfer-encoding", ""):
            return self._chunks()
        if is_empty:
            return b""
        if "content-length" in headers:
            return self._take(int(headers["content-length"]))
        return self._take(len(self._bytes))

    def _chunks(self) -> bytes:
        whole = b""
        while (end := self._bytes.find(b"\r\n", self._position)) >= 0:
            size = int(self._bytes[self._position : end].split(b";")[0], 16)
            self._position = end + 2
            whole += self._take(size)
            self._position += 2
            if size == 0:
                break
        return whole

    def _take(self, count: int) -> bytes:
        taken = self._bytes[self._position : self._position + count]
        self._position += len(taken)
        return taken

    def _time_at(self, position: int) -> float:
        for unix, piece in self._pieces:
            position -= len(piece)
            if position < 0:
                return unix
        return self._pieces[-1][0]
