"""HTTP between our own programs: pooled connections, headers, errors as exceptions, event streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from rbee import __version__
from rbee.core.errors import RbeeError, RelayedError, error_from_fields
from rbee.core.events import Event, EventReader
from rbee.core.http_connection import Answer, Endpoint, TransportFailure

__all__ = ["EventStream", "ServiceClient", "TransportFailure"]


class ServiceClient:
    """Calls one service by base URL.

    Args:
        base_url: e.g. ``http://127.0.0.1:9200``.
        api_key: sent as a bearer token when given.
        version: sent as ``X-Rbee-Version`` (keeper and queen do).
        stream_type: what ``stream`` makes of an answer.
        correlation_id: asked for before each call, so that one client serves many requests.

    Answers of status 400 and above are raised as the ``RbeeError`` their envelope names. Everything below
    HTTP is raised as ``TransportFailure``.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        version: str | None = __version__,
        correlation_id: Callable[[], str | None] = lambda: None,
        timeout_s: float = 10.0,
        stream_type: type[EventStream] | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._correlation_id = correlation_id
        self._timeout_s = timeout_s
        self._stream_type = stream_type or EventStream
        self._endpoint = Endpoint(self.base_url)
        self._headers = {"Accept": "*/*", "User-Agent": f"rbee/{__version__}"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        if version is not None:
            self._headers["X-Rbee-Version"] = version

    def close(self) -> None:
        self._endpoint.close()

    def has_open_connection(self) -> bool:
        """Whether a kept connection is still open at the other end."""
        return self._endpoint.has_open()

    def get(
        self, path: str, *, params: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        """The JSON body of a GET."""
        return self._json(self._send("GET", path, params=params, timeout_s=timeout_s))

    def post(self, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """The JSON body of a POST."""
        return self._json(self._send("POST", path, body=body, timeout_s=timeout_s))

    def delete(self, path: str, *, timeout_s: float | None = None) -> Any:
        """The JSON body of a DELETE, or None when there is none."""
        return self._json(self._send("DELETE", path, timeout_s=timeout_s))

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        connect_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
    ) -> EventStream:
        """Open an event stream; ``read_timeout_s`` limits the silence between two pieces (None: never)."""
        timeout = (connect_timeout_s or self._timeout_s, read_timeout_s)
        return self._stream_type(self._send(method, path, body=body, params=params, timeout=timeout))

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        timeout: tuple[float, float | None] | None = None,
    ) -> Answer:
        headers = dict(self._headers)
        correlation = self._correlation_id()
        if correlation:
            headers["X-Correlation-ID"] = correlation
        raw = None
        if body is not None:
            raw = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        query = f"?{urlencode(params)}" if params else ""
        connect_s, read_s = timeout or (timeout_s or self._timeout_s,) * 2
        answer = self._endpoint.send(
            method, path + query, headers, raw, connect_timeout_s=connect_s, read_timeout_s=read_s
        )
        if answer.status >= 400:
            raise _error_of(answer.status, answer.read())
        return answer

    @staticmethod
    def _json(answer: Answer) -> Any:
        body = answer.read()
        if not body:
            return None
        try:
            return json.loads(body)
        except ValueError:
            raise TransportFailure("unreadable", "the answer is not JSON") from None


class EventStream(AbstractContextManager["EventStream"]):
    """An open event stream; iterate for events, leave the ``with`` block to close the connection."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._partial = b""
        """Of an event whose end has not come yet."""
        self.headers: Mapping[str, str] = Headers(answer.headers)

    def __iter__(self) -> Iterator[Event]:
        """Events until the server ends the stream.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        reader = EventReader()
        try:
            while block := self.next_block():
                yield from reader.feed(block)
        finally:
            self.close()

    def next_block(self) -> bytes:
        """The bytes of one or more whole events, as they came; empty at the end of the stream.

        An interrupted call loses nothing and may be repeated.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        while (block := self.take_block()) is None:
            self._answer.receive()
        return block

    def take_block(self) -> bytes | None:
        """The whole events among what has come already; empty at the end of the stream, None: none yet.

        Raises:
            TransportFailure: what has come is not HTTP.
        """
        pieces = [self._partial]
        while piece := self._answer.take():
            pieces.append(piece)
        block, self._partial = b"".join(pieces), b""
        if block.endswith(b"\n\n"):
            return block
        for blank in (b"\n\n", b"\r\n\r\n"):
            whole, end, after = block.rpartition(blank)
            if end:
                self._partial = after
                return whole + end
        if piece == b"":
            self._answer.close()
            return b""
        self._partial = block
        return None

    def follow(self, accept: Callable[[bytes], bool]) -> bytes:
        """Give blocks to ``accept`` as they come; returns the first that it does not take, or the end.

        ``accept`` must not block. An interrupted call may be repeated.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        while (block := self.next_block()) and accept(block):
            pass
        return block

    def close(self) -> None:
        self._answer.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Headers(dict[str, str]):
    """Header fields, found whatever case their name is asked for in."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


def _error_of(status: int, body: bytes) -> RbeeError:
    try:
        fields = json.loads(body)["error"]
        if isinstance(fields, dict) and "code" in fields:
            return error_from_fields(fields, status)
    except (ValueError, KeyError, TypeError):
        pass
    return RelayedError("INTERNAL_ERROR", f"unexpected answer with status {status}", status, {}, None)
