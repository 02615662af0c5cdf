"""Ends workers that an earlier hive left behind, as the PID journal names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil

from rbee.core.processes import is_same_process
from rbee.hive.ports import JournalRow, PidJournal

GONE_TIMEOUT_S = 5.0


def end_orphans(journal: PidJournal, rows: list[JournalRow], log: Any) -> list[str]:
    """Kill the processes of these rows that are still the same processes, and remove the rows.

    An orphan is killed, not asked: nobody is left whom it could serve, and it keeps nothing to lose.

    Returns:
        the ids of the workers that were still running.
    """
    ended = []
    for row in rows:
        processes = list(_processes_of(row))
        for process in processes:
            _kill(process)
        _, alive = psutil.wait_procs(processes, timeout=GONE_TIMEOUT_S)
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
        if not alive:
            journal.remove(row.worker_id)
    return ended


def _processes_of(row: JournalRow) -> Iterator[psutil.Process]:
    """The worker's main process if it still is that of the row, and processes that name this worker."""
    if is_same_process(row.pid, row.pid_started):
        yield psutil.Process(row.pid)
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or []
        if process.pid != row.pid and row.worker_id in command and "--worker-id" in command:
            yield process


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
