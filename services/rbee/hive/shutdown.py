"""The end of a hive: every worker is asked at once, and nothing is left when it exits."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import gevent

from rbee.core.errors import RbeeError
from rbee.core.settings import Timing
from rbee.hive.greenlets import start
from rbee.hive.policy import cascade_schedule
from rbee.hive.ports import PidJournal
from rbee.hive.stopping import WorkerStopper
from rbee.hive.workers import EndReason, WorkerRegistry, WorkerSeat

REAP_S = 2.0
"""How long a process may take to disappear after SIGKILL."""


class Cascade:
    """Ends all workers in parallel within the hive's total time.

    Args:
        close_admission: refuses spawns from now on.
        close_models: ends downloads and conversions.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        stopper: WorkerStopper,
        journal: PidJournal,
        hive_port: int,
        close_admission: Callable[[], None],
        close_models: Callable[[], None],
        timing: Timing,
        log: Any,
    ) -> None:
        self._registry = registry
        self._stopper = stopper
        self._journal = journal
        self._hive_port = hive_port
        self._close_admission = close_admission
        self._close_models = close_models
        self._schedule = cascade_schedule(timing)
        self._log = log
        self.has_begun = False

    def run(self) -> None:
        """Block until no worker is left and the journal is clear."""
        self.has_begun = True
        deadline = time.monotonic() + self._schedule.total_s
        self._close_admission()
        closing = start(self._log, self._close_models)
        workers = [(record.id, seat) for record, seat in self._registry.seated()]
        self._log.info("server_shutdown", message=f"ending {len(workers)} workers", workers=len(workers))
        for worker_id, _ in workers:
            self._stopper.begin(worker_id, EndReason.HIVE_SHUTDOWN, self._schedule)
        self._await_all(workers, deadline)
        closing.join(timeout=max(REAP_S, deadline - time.monotonic()))
        self._clear()

    def _await_all(self, workers: list[tuple[str, WorkerSeat]], deadline: float) -> None:
        waiting = {seat.gone: worker_id for worker_id, seat in workers}
        total, limit_s = len(waiting), max(0.0, deadline - time.monotonic())
        for ended, gone in enumerate(gevent.iwait(list(waiting), timeout=limit_s), 1):
            worker_id = waiting.pop(gone)
            message = f"{ended}/{total} workers ended"
            self._log.info("shutdown_progress", message=message, worker_id=worker_id)
        for worker_id, seat in workers:
            self._stopper.kill(worker_id, seat, signal.SIGKILL, "still running when the hive's time was over")
        gevent.wait(list(waiting), timeout=REAP_S)

    def _clear(self) -> None:
        left = [record.id for record in self._registry.records()]
        if left:
            self._log.error("workers_left", message=f"{len(left)} workers could not be ended", workers=left)
        try:
            if not left:
                self._journal.clear(self._hive_port)
        except RbeeError as error:
            self._log.warning("journal_not_written", message=error.message)
        self._journal.close()
        self._log.info("server_shutdown", message="all workers have ended")
