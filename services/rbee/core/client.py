"""HTTP between our own programs: pooled connections, headers, errors as exceptions, event streams."""

from __future__ import annotations

import _socket
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from rbee import __version__
from rbee.core.errors import RbeeError, RelayedError, error_from_fields
from rbee.core.events import Event, EventReader

_CONNECTIONS_KEPT = 128
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN)


class TransportFailure(Exception):
    """No usable HTTP answer came; ``kind`` says why.

    Kinds: ``refused``, ``timeout``, ``reset``, ``unresolved`` (host name), ``unreachable`` (no route),
    ``unreadable`` (an answer that is not the contract's).
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class ServiceClient:
    """Calls one service by base URL.

    Args:
        base_url: e.g. ``http://127.0.0.1:9200``.
        api_key: sent as a bearer token when given.
        version: sent as ``X-Rbee-Version`` (keeper and queen do).
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
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._correlation_id = correlation_id
        self._timeout_s = timeout_s
        self._prefix = urlsplit(self.base_url).path
        # A pool of our own, not a proxy manager: proxies are for the internet, not for a fleet's services.
        self._pool = urllib3.connection_from_url(self.base_url, maxsize=_CONNECTIONS_KEPT, retries=False)
        if isinstance(self._pool, urllib3.HTTPConnectionPool) and self._pool.scheme == "http":
            self._pool.ConnectionCls = _Connection
        self._headers = {"Accept": "*/*", "User-Agent": f"rbee/{__version__}"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        if version is not None:
            self._headers["X-Rbee-Version"] = version

    def close(self) -> None:
        self._pool.close()

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
        return EventStream(self._send(method, path, body=body, params=params, stream=True, timeout=timeout))

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        timeout: tuple[float, float | None] | None = None,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        headers = dict(self._headers)
        correlation = self._correlation_id()
        if correlation:
            headers["X-Correlation-ID"] = correlation
        raw = None
        if body is not None:
            raw = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connect_s, read_s = timeout or (timeout_s or self._timeout_s,) * 2
        query = f"?{urlencode(params)}" if params else ""
        try:
            answer = self._pool.urlopen(
                method,
                f"{self._prefix}{path}{query}",
                body=raw,
                headers=headers,
                timeout=urllib3.Timeout(connect=connect_s, read=read_s),
                redirect=False,
                preload_content=not stream,
            )
            if answer.status >= 400:
                try:
                    raise _error_of(answer.status, answer.data)
                finally:
                    answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _transport_failure(error) from error
        return answer

    @staticmethod
    def _json(answer: urllib3.BaseHTTPResponse) -> Any:
        if answer.status == 204 or not answer.data:
            return None
        try:
            return json.loads(answer.data)
        except ValueError:
            raise TransportFailure("unreadable", "the answer is not JSON") from None


class _Connection(urllib3.connection.HTTPConnection):
    """A connection whose check for reuse is one system call.

    urllib3 polls the socket instead, which under gevent is a turn of the event loop for every request.
    """

    @property
    def is_connected(self) -> bool:
        if self.sock is None:
            return False
        # The built-in type, which gevent does not replace: its own would wait for data.
        probe = _socket.socket(fileno=self.sock.fileno())
        try:
            probe.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            probe.detach()
        # Closed by the service, or data that nobody asked for.
        return False


class EventStream(AbstractContextManager["EventStream"]):
    """An open event stream; iterate for events, leave the ``with`` block to close the connection."""

    def __init__(self, answer: urllib3.BaseHTTPResponse) -> None:
        self._answer = answer
        self.headers: Mapping[str, str] = answer.headers

    def __iter__(self) -> Iterator[Event]:
        """Events until the server ends the stream.

        Raises:
            TransportFailure: the connection broke or stayed silent too long.
        """
        reader = EventReader()
        try:
            for chunk in self._chunks():
                yield from reader.feed(chunk)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _transport_failure(error) from error
        except AttributeError as error:
            # urllib3 drops its file object when another greenlet closes the connection while we read.
            raise TransportFailure("reset", "the stream was closed") from error

    def _chunks(self) -> Iterator[bytes]:
        raw = self._answer
        if getattr(raw, "chunked", False):
            # One HTTP chunk is one flush of the server: no waiting for a buffer to fill.
            yield from raw.read_chunked(decode_content=True)
        else:
            while piece := raw.read1(65536):
                yield piece

    def close(self) -> None:
        self._answer.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _error_of(status: int, body: bytes) -> RbeeError:
    try:
        fields = json.loads(body)["error"]
        if isinstance(fields, dict) and "code" in fields:
            return error_from_fields(fields, status)
    except (ValueError, KeyError, TypeError):
        pass
    return RelayedError("INTERNAL_ERROR", f"unexpected answer with status {status}", status, {}, None)


def _transport_failure(error: BaseException) -> TransportFailure:
    causes = list(_causes(error))
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return TransportFailure("refused", "Connection refused")
    if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
        return TransportFailure("unresolved", "Could not resolve hostname")
    # urllib3 counts every connection that cannot be made among its time-outs.
    made = (c for c in causes if not isinstance(c, urllib3.exceptions.NewConnectionError))
    if any(isinstance(cause, (TimeoutError, urllib3.exceptions.TimeoutError)) for cause in made):
        return TransportFailure("timeout", "Connection timeout")
    if any(isinstance(cause, ConnectionResetError) for cause in causes):
        return TransportFailure("reset", "Connection reset by peer")
    unreachable = next((c for c in causes if isinstance(c, OSError) and c.errno in _UNREACHABLE), None)
    if unreachable is not None:
        return TransportFailure("unreachable", os.strerror(unreachable.errno or 0))
    return TransportFailure("reset", f"Connection broken ({type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        following = cause.__cause__ or cause.__context__ or getattr(cause, "reason", None)
        if not isinstance(following, BaseException):
            following = next((a for a in cause.args if isinstance(a, BaseException)), None)
        cause = following
