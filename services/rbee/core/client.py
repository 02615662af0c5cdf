"""HTTP between our own programs: pooled connections, headers, errors as exceptions, event streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from rbee import __version__
from rbee.core.errors import RbeeError, RelayedError, error_from_fields
from rbee.core.events import Event, EventReader


class TransportFailure(Exception):
    """No usable HTTP answer came; ``kind`` is ``refused``, ``timeout``, ``reset`` or ``unreadable``."""

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
        self._session = requests.Session()
        # Proxies and .netrc of the environment are for the internet, not for a fleet's own services.
        self._session.trust_env = False
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=128, max_retries=0)
        self._session.mount("http://", adapter)
        if api_key is not None:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        if version is not None:
            self._session.headers["X-Rbee-Version"] = version

    def close(self) -> None:
        self._session.close()

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
    ) -> requests.Response:
        headers = {}
        correlation = self._correlation_id()
        if correlation:
            headers["X-Correlation-ID"] = correlation
        try:
            answer = self._session.request(
                method,
                self.base_url + path,
                json=body,
                params=params,
                headers=headers,
                timeout=timeout or timeout_s or self._timeout_s,
                stream=stream,
                allow_redirects=False,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _transport_failure(error) from error
        if answer.status_code >= 400:
            try:
                raise _error_of(answer)
            finally:
                answer.close()
        return answer

    @staticmethod
    def _json(answer: requests.Response) -> Any:
        if answer.status_code == 204 or not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise TransportFailure("unreadable", "the answer is not JSON") from None


class EventStream(AbstractContextManager["EventStream"]):
    """An open event stream; iterate for events, leave the ``with`` block to close the connection."""

    def __init__(self, answer: requests.Response) -> None:
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
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _transport_failure(error) from error
        except AttributeError as error:
            # urllib3 drops its file object when another greenlet closes the connection while we read.
            raise TransportFailure("reset", "the stream was closed") from error

    def _chunks(self) -> Iterator[bytes]:
        raw = self._answer.raw
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


def _error_of(answer: requests.Response) -> RbeeError:
    try:
        fields = answer.json()["error"]
        if isinstance(fields, dict) and "code" in fields:
            return error_from_fields(fields, answer.status_code)
    except (ValueError, KeyError, TypeError, requests.RequestException):
        pass
    return RelayedError(
        "INTERNAL_ERROR", f"unexpected answer with status {answer.status_code}", answer.status_code, {}, None
    )


def _transport_failure(error: BaseException) -> TransportFailure:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ConnectionRefusedError):
            return TransportFailure("refused", "Connection refused")
        if isinstance(chain, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)):
            return TransportFailure("timeout", "Connection timeout")
        if isinstance(chain, urllib3.exceptions.NameResolutionError):
            return TransportFailure("unresolved", "Could not resolve hostname")
        if isinstance(chain, ConnectionResetError):
            return TransportFailure("reset", "Connection reset by peer")
        following = chain.__cause__ or chain.__context__ or getattr(chain, "reason", None)
        if not isinstance(following, BaseException):
            following = next((a for a in chain.args if isinstance(a, BaseException)), None)
        chain = following
    return TransportFailure("reset", f"Connection broken ({type(error).__name__})")
