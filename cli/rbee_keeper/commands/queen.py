"""``queen``: the background queen of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.parameters import KeeperGroup, json_option
from rbee_keeper.results import Message, QueenStatus
from rbee_keeper.session import DEFAULT_QUEEN_PORT, Session

if TYPE_CHECKING:
    from rbee_keeper.background_queen import BackgroundQueen
    from rbee_keeper.queen_probe import ProbeResult


@click.group(cls=KeeperGroup)
def queen() -> None:
    """Start, stop and look at the queen of this machine."""


@queen.command()
@click.option("--port", type=click.IntRange(1024, 65535), help=f"[default: {DEFAULT_QUEEN_PORT}]")
@click.pass_obj
def start(session: Session, /, port: int | None) -> Message:
    """Start a queen that stays when this command ends."""
    from rbee.core.settings import prepare_home
    from rbee_keeper.background_queen import exclusive, running_queen, start_background_queen
    from rbee_keeper.queen_probe import Presence

    settings = session.settings
    try:
        prepare_home(settings)
        with exclusive(settings.run_dir):
            present = running_queen(settings.run_dir)
            if present is not None:
                return _already(present.url, present.pid)
            address = _listen_address(session, port)
            url = f"http://{_as_destination(address)}"
            found = _probe(session, url)
            if found.is_ephemeral:
                raise KeeperFailure(
                    f"A command that runs has a queen of its own at {url}; it ends with that command",
                    suggestion="Start again when it has ended, or choose another --port",
                )
            if found.presence in (Presence.QUEEN, Presence.OTHER_KEY):
                return _already(url, None)
            started = start_background_queen(session, address)
    except OSError as error:
        raise KeeperFailure(f"Cannot use {error.filename or settings.home}: {error.strerror}") from None
    return Message([f"queen-rbee started at {started.url} (pid {started.pid})"])


@queen.command()
@click.pass_obj
def stop(session: Session, /) -> Message:
    """End the queen that "queen start" started, with all it started."""
    from rbee_keeper.background_queen import exclusive, remove_record, running_queen, stop_background_queen
    from rbee_keeper.queen_connection import cascade_patience_s

    run_dir = session.settings.run_dir
    if not run_dir.is_dir():
        raise _none_to_stop()
    with exclusive(run_dir):
        present = running_queen(run_dir)
        if present is None:
            remove_record(run_dir)
            raise _none_to_stop()
        session.interrupts.begin_cleanup()
        stop_background_queen(
            present,
            run_dir,
            patience_s=cascade_patience_s(session.settings),
            is_hurried=lambda: session.interrupts.is_hurried,
        )
    return Message([f"queen-rbee stopped (pid {present.pid})"])


@queen.command()
@json_option
@click.pass_obj
def status(session: Session, /) -> QueenStatus:
    """Say whether a queen serves, and where; exit code 0 if so, 1 if not."""
    from rbee_keeper.background_queen import running_queen
    from rbee_keeper.queen_probe import Presence

    url = session.queen_url
    found = _probe(session, url)
    recorded = running_queen(session.settings.run_dir)
    is_running = found.presence in (Presence.QUEEN, Presence.OTHER_KEY)
    return QueenStatus(
        url=url,
        running=is_running,
        version=found.version,
        pid=_pid_at(url, recorded) if is_running else None,
        reason=_reason(found),
        exit_code=ExitCode.OK if is_running else ExitCode.FAILED,
    )


def _reason(found: ProbeResult) -> str | None:
    from rbee_keeper.queen_probe import Presence

    if found.presence is Presence.OTHER_KEY:
        return "it does not accept the configured API key"
    return found.reason or None


def _pid_at(url: str, recorded: BackgroundQueen | None) -> int | None:
    return recorded.pid if recorded is not None and recorded.url == url else None


def _already(url: str, pid: int | None) -> Message:
    return Message([f"queen-rbee is already running at {url}" + (f" (pid {pid})" if pid is not None else "")])


def _none_to_stop() -> KeeperFailure:
    return KeeperFailure('No queen started by "queen start" is running', code="NOT_FOUND")


def _probe(session: Session, url: str) -> ProbeResult:
    from rbee_keeper.queen_probe import probe

    return probe(url, session.api_key, session.settings.timing.queen_probe_timeout_ms / 1000)


def _listen_address(session: Session, port: int | None) -> str:
    """Where to listen: the flag over ``queen.listen_addr`` over the port of a queen URL on this machine."""
    from rbee_keeper.queen_connection import is_loopback, listen_address

    stated = session.settings.queen
    if "listen_addr" in stated.model_fields_set:
        host, _, stated_port = stated.listen_addr.rpartition(":")
        return f"{host}:{port or stated_port}"
    if port is None and "url" in stated.model_fields_set and is_loopback(stated.url):
        return listen_address(session.queen_url)
    return f"127.0.0.1:{port or DEFAULT_QUEEN_PORT}"


def _as_destination(address: str) -> str:
    parts = urlsplit(f"//{address}")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname or "")  # noqa: S104
    return f"{f'[{host}]' if ':' in host else host}:{parts.port}"
