"""The client half of HTTP/1.1 as our own services speak it: few system calls, kept connections, streams.

A request goes out in one write and an answer's head is read by hand, because a request through the queen
makes three of them before its first token. Format: RFC 9112 (message framing) and RFC 9110 (semantics).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

_RECEIVE_BYTES = 65536
_CHUNK_BYTES = 4096
"""Read at once of a stream of chunks: tokens are small, and a buffer is made anew for each read."""
_HEAD_LIMIT = 65536
_LINE_LIMIT = 8192
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN)
_KEPT = 128
_NOW = int(socket.MSG_DONTWAIT)
_SIZE_LINE = 8
"""Longest line with the size of a chunk that is taken in one piece, with its end."""


class TransportFailure(Exception):
    """No usable HTTP answer came; ``kind`` says why.

    Kinds: ``refused``, ``timeout``, ``reset``, ``unresolved`` (host name), ``unreachable`` (no route),
    ``unreadable`` (an answer that is not the contract's).
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Endpoint:
    """One service's address, with the connections to it that are open and unused.

    Raises:
        ValueError: the URL is not ``http://`` or ``https://`` with a host.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{base_url}' is no http URL")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._idle: list[_Connection] = []
        self._is_closed = False

    def close(self) -> None:
        """Close unused connections; those in use close when their answer ends."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        connect_timeout_s: float,
        read_timeout_s: float | None,
    ) -> Answer:
        """One request; returns when the head of its answer is there.

        Raises:
            TransportFailure
        """
        lines = [f"{method} {self._prefix}{target} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if " " in target or any("\r" in line or "\n" in line for line in lines):
            raise TransportFailure("unreadable", "a line break or blank where none may be")
        if body is not None or method == "POST":
            lines.append(f"Content-Length: {len(body or b'')}")
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + (body or b"")
        kept = self._take_idle()
        if kept is not None:
            try:
                return kept.exchange(request, read_timeout_s)
            except TransportFailure as failure:
                # The service may have closed it at this very moment; only what is safe is sent again.
                if failure.kind != "reset" or method != "GET" or kept.has_answered:
                    raise
        return self._connect(connect_timeout_s).exchange(request, read_timeout_s)

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection whose answer was read to its end."""
        if len(self._idle) < _KEPT and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()

    def has_open(self) -> bool:
        """Whether an unused connection is open; those that the service has closed are closed here too."""
        for connection in list(self._idle):
            if not connection.is_open():
                self._idle.remove(connection)
                connection.close()
        return bool(self._idle)

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open():
                return connection
            connection.close()
        return None

    def _connect(self, timeout_s: float) -> _Connection:
        try:
            plain = _open(self._host, self._port, timeout_s)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                secured = self._tls.wrap_socket(plain, server_hostname=self._host) if self._tls else plain
            except BaseException:
                plain.close()
                raise
        except OSError as error:
            raise _failure(error) from error
        return _Connection(secured, self)


class Answer:
    """An answer whose head was read; its body is read by ``read``, ``pieces`` or ``piece``, once."""

    def __init__(self, status: int, headers: Mapping[str, str], connection: _Connection) -> None:
        self.status = status
        self.headers = headers
        """Names in lower case."""
        self._connection = connection
        self._is_over = False
        self._left: int | None = None
        """Bytes to come; None: a chunked body, or one that ends with the connection."""
        self._is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if status in (204, 304):
            self._left = 0
        elif not self._is_chunked and "content-length" in headers:
            self._left = _length(headers["content-length"])

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        try:
            while piece := self.piece():
                yield piece
        finally:
            self.close()

    def piece(self) -> bytes:
        """The next part of the body, empty at its end; an interrupted call loses nothing and may be repeated.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        while (piece := self.take()) is None:
            self.receive()
        return piece

    def take(self) -> bytes | None:
        """The next part of the body if it has come already, empty at its end; None: ``receive`` first.

        Raises:
            TransportFailure: what has come is not HTTP.
        """
        if self._is_over:
            return b""
        try:
            if self._is_chunked:
                piece = self._connection.take_chunk()
            elif self._left is None:
                piece = self._connection.take_some(None)
            else:
                piece = self._connection.take_some(self._left) if self._left else b""
                self._left -= len(piece or b"")
        except TransportFailure:
            self.close()
            raise
        self._is_over = piece == b""
        return piece

    def chunk_receiver(self) -> Callable[[], bytes | None] | None:
        """What takes in what has come, without waiting, and returns it if it is one whole chunk.

        So nearly every token comes. None from it: see what ``take`` gives. None instead of it: the body is
        not chunked. It raises TransportFailure, after which the answer is to be closed.
        """
        return self._connection.receive_chunk if self._is_chunked else None

    def receive(self, *, wait: bool = True) -> None:
        """Take in what comes next from the service.

        Args:
            wait: whether to wait for it, at most as long as the request allows.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        try:
            self._connection.receive(wait=wait)
        except _Ended:
            if self._is_chunked or self._left is not None:
                self.close()
                raise
            self._is_over = True
        except TransportFailure:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise _failure(error) from error

    def fileno(self) -> int | None:
        """The descriptor that becomes readable when there is something to receive; None under TLS."""
        return self._connection.fileno()

    def close(self) -> None:
        """Give the connection back after a whole body, else close it; may be called at any time."""
        connection, self._connection = self._connection, _CLOSED
        has_length = self._is_chunked or self._left is not None
        if self._is_over and has_length and self.headers.get("connection", "").lower() != "close":
            connection.release()
        else:
            connection.close()


class _Connection:
    """A socket with what was received and not yet used."""

    def __init__(self, sock: socket.socket | None, endpoint: Endpoint | None) -> None:
        self._sock = sock
        # The built-in type, which gevent does not replace: its own would wait for data.
        self._plain = None if sock is None else _socket.socket(fileno=sock.fileno())
        self._endpoint = endpoint
        self._buffer = b""
        self.has_answered = False

    def exchange(self, request: bytes, read_timeout_s: float | None) -> Answer:
        self.has_answered = False
        try:
            assert self._sock is not None  # noqa: S101 (only open connections exchange)
            self._sock.settimeout(read_timeout_s)
            self._sock.sendall(request)
            status, headers = self._head()
            while status < 200:
                status, headers = self._head()
            return Answer(status, headers, self)
        except OSError as error:
            self.close()
            raise _failure(error) from error
        except BaseException:
            self.close()
            raise

    def is_open(self) -> bool:
        """Whether the service has neither closed it nor sent what nobody asked for; one system call."""
        if self._plain is None:
            return False
        try:
            self._plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def release(self) -> None:
        if self._endpoint is not None and self._sock is not None and not self._buffer:
            self._endpoint.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        sock, self._sock = self._sock, None
        plain, self._plain = self._plain, None
        if plain is not None:
            plain.detach()
        if sock is not None:
            # A reader in another thread or greenlet is woken by this, not by closing alone.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def take_chunk(self) -> bytes | None:
        """The next chunk of a chunked body if it is whole; empty for the last one."""
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _LINE_LIMIT:
                raise TransportFailure("unreadable", "a line without an end")
            return None
        try:
            size = int(self._buffer[:end].partition(b";")[0], 16)
        except ValueError:
            raise TransportFailure("unreadable", "a chunk without a size") from None
        if size == 0:
            return self._take_trailer(end + 2)
        after = end + 2 + size
        if len(self._buffer) < after + 2:
            return None
        if self._buffer[after : after + 2] != b"\r\n":
            raise TransportFailure("unreadable", "a chunk without an end")
        piece, self._buffer = self._buffer[end + 2 : after], self._buffer[after + 2 :]
        return piece

    def _take_trailer(self, start: int) -> bytes | None:
        """Take the fields after the last chunk, up to their blank line."""
        while self._buffer[start : start + 2] != b"\r\n":
            end = self._buffer.find(b"\r\n", start)
            if end < 0:
                if len(self._buffer) - start > _LINE_LIMIT:
                    raise TransportFailure("unreadable", "a line without an end")
                return None
            start = end + 2
        self._buffer = self._buffer[start + 2 :]
        return b""

    def take_some(self, limit: int | None) -> bytes | None:
        """At least one and at most ``limit`` bytes."""
        if not self._buffer:
            return None
        count = len(self._buffer) if limit is None else limit
        piece, self._buffer = self._buffer[:count], self._buffer[count:]
        return piece

    def fileno(self) -> int | None:
        return None if self._sock is None or isinstance(self._sock, ssl.SSLSocket) else self._sock.fileno()

    def _head(self) -> tuple[int, dict[str, str]]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise TransportFailure("unreadable", "the answer's head has no end")
            self.receive()
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        self._buffer = self._buffer[end + 4 :]
        words = lines[0].split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise TransportFailure("unreadable", "the answer is not HTTP")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(words[1]), headers

    def receive_chunk(self) -> bytes | None:
        """Take in what has come; the chunk, if it is one and nothing was left from before.

        Written out, for it is called for every token.
        """
        plain = self._plain
        try:
            if self._buffer or plain is None:
                self.receive(wait=False)
                return None
            piece = plain.recv(_CHUNK_BYTES, _NOW)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _failure(error) from error
        if not piece:
            raise _Ended("reset", "Connection closed by the service")
        end = piece.find(b"\r\n", 0, _SIZE_LINE)
        try:
            size = int(piece[:end], 16)
        except ValueError:
            size = 0
        if size > 0 and len(piece) == end + size + 4 and piece.endswith(b"\r\n"):
            return piece[end + 2 : -2]
        self._buffer = piece
        return None

    def receive(self, *, wait: bool = True) -> None:
        sock = self._sock
        if sock is None:
            raise TransportFailure("reset", "the stream was closed")
        if wait or self._plain is None:
            piece = sock.recv(_RECEIVE_BYTES)
        else:
            try:
                piece = self._plain.recv(_RECEIVE_BYTES, _NOW)
            except BlockingIOError:
                return
        if not piece:
            raise _Ended("reset", "Connection closed by the service")
        self.has_answered = True
        self._buffer = self._buffer + piece if self._buffer else piece


class _Ended(TransportFailure):
    """The service closed the connection."""


_CLOSED = _Connection(None, None)
"""What an answer holds after it was closed."""


def _open(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected socket; a literal IPv4 address costs no look-up, which under gevent is a thread's work."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return socket.create_connection((host, port), timeout=timeout_s)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _length(text: str) -> int:
    if not text.isdigit():
        raise TransportFailure("unreadable", "the answer's length is no number")
    return int(text)


def _failure(error: OSError) -> TransportFailure:
    if isinstance(error, ConnectionRefusedError):
        return TransportFailure("refused", "Connection refused")
    if isinstance(error, TimeoutError):
        return TransportFailure("timeout", "Connection timeout")
    if isinstance(error, socket.gaierror):
        return TransportFailure("unresolved", "Could not resolve hostname")
    if error.errno in _UNREACHABLE:
        return TransportFailure("unreachable", os.strerror(error.errno or 0))
    if isinstance(error, ConnectionResetError):
        return TransportFailure("reset", "Connection reset by peer")
    return TransportFailure("reset", f"Connection broken ({type(error).__name__})")
