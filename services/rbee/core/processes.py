"""Facts about processes that daemons share: identity that survives pid reuse, and dying with the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import psutil

# Loaded here and not after a fork: a thread that was loading a library at that moment would block the child.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def started_at(pid: int) -> float | None:
    """When the process started (Unix seconds), or None when it is gone; with the pid it is an identity."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def is_same_process(pid: int, started: float) -> bool:
    """Whether ``pid`` still is the process that started at ``started`` and has not become a zombie."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send ``number`` to this process when its parent thread ends (only on Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def kill_group(pid: int, number: int) -> bool:
    """Signal the process group led by ``pid``; False when it is gone already."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
