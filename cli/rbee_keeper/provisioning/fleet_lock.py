"""One change of the fleet's software at a time, with the name of who is at it."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rbee_keeper.failures import KeeperFailure

LOCK_FILE = "fleet.lock"


class FleetLocked(KeeperFailure):
    """Somebody else changes the fleet now."""

    def __init__(self, note: dict[str, str]) -> None:
        super().__init__(
            f"The fleet is being changed by {note.get('who', 'somebody else')}",
            details=(
                f"What: {note.get('why', 'unknown')}",
                f"Since: {note.get('since', 'unknown')} UTC",
                f"Process: {note.get('pid', 'unknown')}",
            ),
            suggestion="Wait until it has ended, then run the command again",
        )


@contextmanager
def fleet_lock(run_dir: Path, why: str, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold the fleet; gives the descriptor, for the process that does the work to inherit.

    The kernel releases the lock with the last process that has it, so that it never outlives its work. What a
    holder has noted about itself is still there when it did not end in order; that is told.

    Args:
        why: what is done, shown to the next one who asks.

    Raises:
        FleetLocked: somebody else holds it.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetLocked(_note(descriptor)) from None
        left = _note(descriptor)
        if left:
            tell(f"Taking over the fleet lock of {_words(left)}: that process has ended without releasing it")
        _write(descriptor, json.dumps(_own_note(why)))
        try:
            yield descriptor
        finally:
            _write(descriptor, "")
    finally:
        os.close(descriptor)


def _own_note(why: str) -> dict[str, str | int]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return {"who": who(), "pid": os.getpid(), "since": since, "why": why}


def who() -> str:
    """The person at this machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _note(descriptor: int) -> dict[str, str]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _words(note: dict[str, str]) -> str:
    person, pid, since, why = (note.get(key, "unknown") for key in ("who", "pid", "since", "why"))
    return f"{person} ({why}, since {since} UTC, pid {pid})"
