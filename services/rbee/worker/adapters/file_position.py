"""How far this process has read a file, asked from the kernel while native code reads it."""

from __future__ import annotations

import os
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")
_STATES = Path("/proc/self/fdinfo")


def position_in(path: Path) -> int | None:
    """The offset of an open descriptor of ``path``; None when none is open or no procfs tells."""
    wanted = os.path.realpath(path)
    try:
        names = os.listdir(_DESCRIPTORS)
    except OSError:
        return None
    for name in names:
        try:
            if os.readlink(_DESCRIPTORS / name) == wanted:
                # "pos:\t<offset>" is the first line (proc_pid_fdinfo(5)).
                return int((_STATES / name).read_text().split(None, 2)[1])
        except (OSError, ValueError, IndexError):
            continue
    return None
