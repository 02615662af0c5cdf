"""Looks at processes that may end at any moment: one that is gone is left out, never an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def arguments(process: psutil.Process | None) -> list[str]:
    """The command line, empty when the process is gone or none."""
    try:
        return list(process.cmdline()) if process is not None else []
    except psutil.Error:
        return []


def children(pid: int) -> list[psutil.Process]:
    """The children of a process that are alive."""
    try:
        return [child for child in psutil.Process(pid).children() if is_alive(child.pid)]
    except psutil.NoSuchProcess:
        return []


def with_variable(name: str, value: Path | str) -> list[psutil.Process]:
    """Living processes whose environment has this variable with this value."""
    return [process for process, found in _environments(name) if found == str(value)]


def with_state_below(folder: Path) -> list[psutil.Process]:
    """Living processes of ours whose state directory lies below a folder."""
    return [process for process, found in _environments("RBEE_HOME") if str(folder) in found]


def _environments(name: str) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        try:
            value = process.environ().get(name)
        except psutil.Error:
            continue
        if value is not None and is_alive(process.pid):
            yield process, value
