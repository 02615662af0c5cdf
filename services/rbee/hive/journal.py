"""Ends workers that an earlier hive left behind, as the PID journal names them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from rbee.core.processes import is_same_process
from rbee.hive.ports import WORKER_ID_VARIABLE, JournalRow, PidJournal

GONE_TIMEOUT_S = 5.0
_POLL_S = 0.02


def end_orphans(
    journal: PidJournal, rows: list[JournalRow], forget: Callable[[str], None], log: Any
) -> list[str]:
    """Kill the processes of these rows that are still the same processes, and remove the rows.

    An orphan is killed, not asked: nobody is left whom it could serve, and it keeps nothing to lose.

    Args:
        forget: removes the key file of a worker.

    Returns:
        the ids of the workers that were still running.
    """
    ended = []
    for row in rows:
        processes = list(_processes_of(row))
        for process in processes:
            _kill(process)
        if processes:
            ended.append(row.worker_id)
            log.warning(
                "forced_kill",
                message=f"orphan {row.worker_id} of an earlier hive ended",
                worker_id=row.worker_id,
                pid=row.pid,
                reason="orphan of an earlier hive",
                signal="SIGKILL",
            )
        if _have_gone(processes):
            forget(row.worker_id)
            journal.remove(row.worker_id)
    return ended


def _processes_of(row: JournalRow) -> Iterator[psutil.Process]:
    """The process of the row if it still is the same, and others of its group that carry the worker's id."""
    for process in psutil.process_iter():
        try:
            if process.pid == row.pid:
                is_it = is_same_process(row.pid, row.pid_started)
            else:
                in_group = os.getpgid(process.pid) == row.pid
                is_it = in_group and process.environ().get(WORKER_ID_VARIABLE) == row.worker_id
        except (psutil.Error, OSError):
            continue
        if is_it:
            yield process


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _have_gone(processes: list[psutil.Process]) -> bool:
    """Whether they end in time; one that only waits for its parent to take note of its end has gone."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(map(_lives, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
