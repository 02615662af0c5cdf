"""The background queen of the control machine: its record on disk, its start and its end."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbee_keeper.failures import KeeperFailure

if TYPE_CHECKING:
    from rbee_keeper.session import Session

PID_FILE = "queen.pid"
URL_FILE = "queen.url"
_LOCK_FILE = "queen.lock"
_POLL_S = 0.02


@dataclass(frozen=True)
class BackgroundQueen:
    """A queen that ``queen start`` left running; its start time tells it from a later process of that pid."""

    pid: int
    started: float
    url: str


def running_queen(run_dir: Path) -> BackgroundQueen | None:
    """The queen recorded under ``run_dir`` if that very process still runs."""
    queen = _read_record(run_dir)
    if queen is None:
        return None
    from rbee.core.processes import is_same_process

    return queen if is_same_process(queen.pid, queen.started) else None


def start_background_queen(session: Session, address: str) -> BackgroundQueen:
    """Start a queen that outlives this command and record it.

    Raises:
        QueenStartFailed: it did not come up; nothing is left.
    """
    from rbee.core.processes import started_at
    from rbee_keeper.queen_connection import daemon_arguments
    from rbee_keeper.queen_process import QueenProcess, QueenStartFailed

    settings = session.settings
    process = QueenProcess(
        daemon_arguments(session, address),
        session.environ,
        run_dir=settings.run_dir,
        log_dir=settings.log_dir,
        is_child=False,
    )
    try:
        url = _own_view(process.wait_ready(settings.timing.queen_start_timeout_s))
        started = started_at(process.pid)
        if started is None:
            raise QueenStartFailed("queen-rbee ended right after its start")
        queen = BackgroundQueen(process.pid, started, url)
        _write_record(settings.run_dir, queen)
    except BaseException:
        process.stop(patience_s=5.0)
        raise
    process.release()
    return queen


def stop_background_queen(
    queen: BackgroundQueen, run_dir: Path, *, patience_s: float, is_hurried: Callable[[], bool]
) -> None:
    """End it by its cascade; after ``patience_s``, or when hurried, by SIGKILL."""
    from rbee.core.processes import is_same_process, kill_group

    deadline = time.monotonic() + patience_s
    with suppress(ProcessLookupError):
        os.kill(queen.pid, signal.SIGTERM)
    while is_same_process(queen.pid, queen.started):
        if time.monotonic() > deadline or is_hurried():
            kill_group(queen.pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    remove_record(run_dir)


def remove_record(run_dir: Path) -> None:
    """Forget a queen that has ended."""
    for name in (PID_FILE, URL_FILE):
        (run_dir / name).unlink(missing_ok=True)


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """One ``queen start`` or ``queen stop`` at a time; the lock ends with its process."""
    descriptor = os.open(run_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_record(run_dir: Path) -> BackgroundQueen | None:
    try:
        pid, started = (run_dir / PID_FILE).read_text().split()
        return BackgroundQueen(int(pid), float(started), (run_dir / URL_FILE).read_text().strip())
    except (OSError, ValueError):
        return None


def _write_record(run_dir: Path, queen: BackgroundQueen) -> None:
    """The pid file comes last: it exists only when the rest is complete."""
    _replace(run_dir / URL_FILE, f"{queen.url}\n")
    _replace(run_dir / PID_FILE, f"{queen.pid}\n{queen.started!r}\n")


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(path.suffix + ".new")
    try:
        fresh.write_text(text)
        fresh.replace(path)
    except OSError as error:
        raise KeeperFailure(f"Cannot write {path}: {error.strerror}") from None


def _own_view(url: str) -> str:
    """The announced URL as this machine reaches it: the wildcard address is no destination."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
