"""Locks between processes: the kernel's (flock), so that each ends with its holder, however that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCKS_FOLDER = ".locks"
_POLL_S = 0.1


@contextmanager
def exclusive(path: Path, on_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at ``path``, whose folder is made.

    While there is one, ``on_waiting`` is called: at once, then several times a second.
    """
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_waiting()
        _wait(lock, on_waiting)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unless_held(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock at ``path``; if so, nobody gets it meanwhile."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _wait(lock: FileLock, on_waiting: Callable[[], None]) -> None:
    while True:
        try:
            lock.acquire(timeout=_POLL_S, poll_interval=_POLL_S / 2)
        except Timeout:
            on_waiting()
        else:
            return


def _lock(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False)
