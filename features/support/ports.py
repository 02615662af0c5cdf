"""Ports of a run: a block of its own below the system's ephemeral range, so that nobody else takes one."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

FIRST, LAST, BLOCK = 20000, 31900, 300


class PortBlock:
    """Hands out ports that are free now; a lock keeps other runs on this machine out of the block."""

    def __init__(self) -> None:
        folder = Path(tempfile.gettempdir()) / "rbee-features-ports"
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):
            # Runs of all users claim their blocks here.
            folder.chmod(0o1777)
        self._lock, self._first = _claim(folder)
        self._next = 0

    def take(self, host: str = "127.0.0.1", count: int = 1) -> int:
        """The first of ``count`` free ports in a row."""
        for _ in range(BLOCK):
            if self._next + count > BLOCK:
                self._next = 0
            first = self._first + self._next
            self._next += count
            if all(is_free(host, port) for port in range(first, first + count)):
                return first
        raise AssertionError("every port of this run is in use")


def _claim(folder: Path) -> tuple[FileLock, int]:
    for first in range(FIRST, LAST, BLOCK):
        lock = FileLock(str(folder / f"{first}.lock"))
        try:
            lock.acquire(timeout=0)
        except (Timeout, PermissionError):
            continue
        return lock, first
    raise AssertionError(f"every block of ports is claimed; see {folder}")


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there, so that a daemon could."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def accepts(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def await_port(host: str, port: int, timeout_s: float = 60.0) -> None:
    """Return as soon as somebody accepts connections there.

    Raises:
        TimeoutError: nobody did in time.
    """
    deadline = time.monotonic() + timeout_s
    while not accepts(host, port):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {host}:{port}")
        time.sleep(0.01)


_block: PortBlock | None = None


def free_port(host: str = "127.0.0.1", count: int = 1) -> int:
    """A free port of this run, or the first of several in a row."""
    global _block
    if _block is None:
        _block = PortBlock()
    return _block.take(host, count)
