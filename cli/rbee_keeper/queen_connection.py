"""Finds the queen a command needs, or starts one for it, and speaks HTTP with it."""

from __future__ import annotations

import importlib
import ipaddress
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rbee_keeper.failures import KeeperFailure
from rbee_keeper.place_at_queen import PlaceAtQueen
from rbee_keeper.queen_probe import Presence, ProbeResult, address_of, probe
from rbee_keeper.queen_process import QueenProcess, QueenStartFailed

if TYPE_CHECKING:
    from rbee.core.client import EventStream, ServiceClient
    from rbee.core.settings import Settings
    from rbee_keeper.session import Session

STREAM_SILENCE_S = 60.0
"""A queen sends at least a keep-alive every 10 s; after this long without a byte it counts as lost."""
_CASCADE_SLACK_S = 10.0


class QueenConnection:
    """One queen and how to call it; ``close`` ends it when it lives for commands and this is the last one.

    Errors of the queen are raised as the ``RbeeError`` they are, everything below HTTP as ``KeeperFailure``.

    Args:
        process: the queen, when it was started for this command.
        place: this command's place at a queen that was started for another command.
    """

    def __init__(
        self,
        url: str,
        session: Session,
        process: QueenProcess | None = None,
        place: PlaceAtQueen | None = None,
    ) -> None:
        self.url = url
        self._session = session
        self._process = process
        self._place = place or (PlaceAtQueen(url, session.api_key) if process is not None else None)
        self._correlation_id = str(uuid.uuid4())
        self._client = self.new_client()

    def new_client(self) -> ServiceClient:
        """A client with connections of its own, for use beside a stream."""
        from rbee.core.client import ServiceClient

        return ServiceClient(
            self.url, api_key=self._session.api_key, correlation_id=lambda: self._correlation_id
        )

    def get(self, path: str, *, params: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> Any:
        """The JSON object a GET answers with."""
        with self._told():
            return _object(self._client.get(path, params=params, timeout_s=timeout_s), self.url)

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float = 30.0) -> Any:
        """The JSON object a POST answers with."""
        with self._told():
            return _object(self._client.post(path, dict(body), timeout_s=timeout_s), self.url)

    def delete(self, path: str, *, timeout_s: float = 30.0) -> None:
        """A DELETE whose answer has no body."""
        with self._told():
            self._client.delete(path, timeout_s=timeout_s)

    @property
    def is_own(self) -> bool:
        """Whether the queen was started for this command, so that it serves nobody else yet."""
        return self._process is not None

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> EventStream:
        """Open an event stream; reading it raises ``TransportFailure`` when it breaks."""
        with self._told():
            stream = self._client.stream(
                method,
                path,
                body=dict(body) if body is not None else None,
                params=params,
                read_timeout_s=STREAM_SILENCE_S,
            )
        kind = stream.headers.get("Content-Type", "")
        if not kind.startswith("text/event-stream"):
            stream.close()
            raise _unreadable(self.url)
        return stream

    def close(self) -> None:
        """Leave the queen; one that lives for commands ends with the last of them, and all below it."""
        self._client.close()
        if self._place is None:
            return
        farewell = self._place.leave()
        patience_s = cascade_patience_s(self._session.settings)
        if self._process is None:
            farewell.await_end(patience_s, self._is_hurried)
        elif farewell.is_last:
            self._process.stop(patience_s=patience_s, is_hurried=self._is_hurried)
        else:
            self._process.release()

    def _is_hurried(self) -> bool:
        return self._session.interrupts.is_hurried

    @contextmanager
    def _told(self) -> Iterator[None]:
        from rbee.core.client import TransportFailure

        try:
            yield
        except TransportFailure as error:
            if error.kind == "unreadable":
                raise _unreadable(self.url) from None
            raise self.unreachable(error.reason) from None

    def unreachable(self, reason: str) -> KeeperFailure:
        """The failure to tell when calls to this queen break."""
        details: tuple[str, ...] = ()
        if self._process is not None and not self._process.is_running:
            reason = "it ended unexpectedly"
            details = (f"Log: {self._session.settings.log_dir / 'queen-rbee.log'}",)
        return KeeperFailure(f"Cannot reach queen-rbee at {self.url}: {reason}", details=details)


def connect(session: Session, *, prestart_hive: bool, may_start: bool) -> QueenConnection:
    """See ``Session.queen``."""
    url = session.queen_url
    found, connection = _look(url, session, is_joining=may_start)
    if connection is not None:
        return connection
    if not may_start or not is_loopback(url):
        raise _no_queen(url, found)
    try:
        return _started(url, session, found.presence is Presence.NOTHING, prestart_hive)
    except QueenStartFailed:
        if found.presence is not Presence.NOTHING:
            raise
        # Another keeper may have been quicker to take the port; then its queen serves both.
        again, connection = _look(url, session, is_joining=True)
        if connection is not None:
            return connection
        if again.presence is Presence.STRANGER:
            return _started(url, session, False, prestart_hive)
        raise


def _look(url: str, session: Session, *, is_joining: bool) -> tuple[ProbeResult, QueenConnection | None]:
    """What is at the URL, and the connection if it is a queen that can be used.

    A queen that lives for other commands is joined, so that it does not end under this one; one that is on
    its way out already is waited for.
    """
    timing = session.settings.timing
    deadline = time.monotonic() + cascade_patience_s(session.settings)
    while True:
        found = probe(url, session.api_key, timing.queen_probe_timeout_ms / 1000)
        if found.presence is Presence.OTHER_KEY:
            from rbee.core.errors import InvalidApiKey

            raise InvalidApiKey(address_of(url)[0])
        if found.presence is not Presence.QUEEN:
            return found, None
        if not (found.is_ephemeral and is_joining):
            return found, QueenConnection(url, session)
        place = PlaceAtQueen(url, session.api_key)
        if place.join():
            return found, QueenConnection(url, session, place=place)
        if time.monotonic() > deadline:
            raise KeeperFailure(f"The queen at {url} is shutting down and does not come to its end")
        time.sleep(timing.queen_start_poll_ms / 1000)


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine by a loopback address."""
    host = address_of(url)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen_address(url: str, *, free_port: bool = False) -> str:
    """``HOST:PORT`` on which a queen must listen to be found at ``url``."""
    host, port = address_of(url)
    host = "127.0.0.1" if host == "localhost" else host
    return f"{f'[{host}]' if ':' in host else host}:{0 if free_port else port}"


def cascade_patience_s(settings: Settings) -> float:
    """How long a queen may take to end: running tasks, then its hives, then some slack."""
    timing = settings.timing
    return timing.queen_drain_timeout_s + timing.queen_shutdown_timeout_s + _CASCADE_SLACK_S


def daemon_arguments(session: Session, address: str) -> list[str]:
    """Flags for a queen started by this keeper, so that it reads the same configuration."""
    config = session.settings.source
    return ["--addr", address, *(["--config", str(config.absolute())] if config else [])]


def _started(url: str, session: Session, port_is_free: bool, prestart_hive: bool) -> QueenConnection:
    from rbee.core.settings import prepare_home

    settings = session.settings
    try:
        prepare_home(settings)
        process = QueenProcess(
            [
                *daemon_arguments(session, listen_address(url, free_port=not port_is_free)),
                "--ephemeral",
                *(["--prestart-hive", str(settings.queen.local_hive_port)] if prestart_hive else []),
            ],
            session.environ,
            run_dir=settings.run_dir,
            log_dir=settings.log_dir,
            is_child=True,
        )
    except OSError as error:
        raise KeeperFailure(f"Cannot use {error.filename or settings.home}: {error.strerror}") from None
    try:
        # The import costs as much as the queen's own start: let the two overlap.
        importlib.import_module("rbee.core.client")
        announced = process.wait_ready(settings.timing.queen_start_timeout_s)
        found = probe(announced, session.api_key, settings.timing.queen_start_timeout_s)
        if found.presence is not Presence.QUEEN:
            raise QueenStartFailed(f"queen-rbee at {announced} does not serve: {found.reason}")
        return QueenConnection(announced, session, process)
    except BaseException:
        if process.is_running:
            session.interrupts.begin_cleanup()
        process.stop(
            patience_s=cascade_patience_s(settings), is_hurried=lambda: session.interrupts.is_hurried
        )
        raise


def _no_queen(url: str, found: ProbeResult) -> KeeperFailure:
    if found.presence is Presence.STRANGER:
        return KeeperFailure(
            f"{url} is not a queen-rbee: {found.reason}",
            suggestion="Check queen.url, RBEE_QUEEN_URL or --queen-url",
        )
    start = "rbee-keeper queen start" if is_loopback(url) else "queen-rbee, on that machine"
    return KeeperFailure(
        f"Cannot reach queen-rbee at {url}: {found.reason}",
        suggestion=f"Start a queen ({start}) or check --queen-url",
    )


def _object(answer: Any, url: str) -> Any:
    if not isinstance(answer, dict):
        raise _unreadable(url)
    return answer


def _unreadable(url: str) -> KeeperFailure:
    return KeeperFailure(f"{url} gave an answer that no queen-rbee gives", suggestion="Check --queen-url")
