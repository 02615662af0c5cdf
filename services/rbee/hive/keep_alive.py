"""Ends workers that have been idle for their time."""

from __future__ import annotations

import time
from typing import Any

from rbee.core.settings import Settings
from rbee.hive.greenlets import start
from rbee.hive.policy import idle_deadline, needs_look
from rbee.hive.supervision import Supervisor
from rbee.hive.workers import EndReason, WorkerRecord, WorkerRegistry, WorkerSeat

LOOK_TIMEOUT_S = 1.0


class KeepAlive:
    """Carries out ``pool.keep_alive_policy``; the time counts from what the worker itself says."""

    def __init__(
        self, registry: WorkerRegistry, supervisor: Supervisor, settings: Settings, log: Any
    ) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._policy = settings.pool.keep_alive_policy
        self._idle_timeout_s = settings.timing.idle_timeout_s
        self._interval_s = settings.timing.idle_check_interval_s
        self._log = log
        self._under_way: set[str] = set()

    def until_next_check(self) -> float:
        """Seconds: the check interval, or less when some worker's time is up before."""
        now = time.time()
        deadlines = [self._deadline(record, seat) for record, seat in self._registry.seated()]
        soonest = min((d - now for d in deadlines if d is not None), default=self._interval_s)
        return min(self._interval_s, max(soonest, self._interval_s / 20))

    def check(self) -> None:
        """Start a closer look at every worker whose time seems to be up."""
        now = time.time()
        for record, seat in self._registry.seated():
            if record.id in self._under_way:
                continue
            deadline = self._deadline(record, seat)
            is_due = deadline is not None and deadline <= now
            if is_due or needs_look(record, seat.seen_unix, now, self._policy, self._idle_timeout_s):
                self._under_way.add(record.id)
                start(self._log, self._end_if_idle, record.id, seat)

    def _end_if_idle(self, worker_id: str, seat: WorkerSeat) -> None:
        """Read the state again; end the worker when it really has been idle for its whole time."""
        try:
            if not self._supervisor.look(worker_id, seat, LOOK_TIMEOUT_S, "idle check"):
                return
            record = self._registry.find(worker_id)
            deadline = None if record is None else self._deadline(record, seat)
            if deadline is not None and deadline <= time.time():
                self._supervisor.stop(worker_id, EndReason.IDLE_TIMEOUT)
        finally:
            self._under_way.discard(worker_id)

    def _deadline(self, record: WorkerRecord, seat: WorkerSeat) -> float | None:
        return idle_deadline(record, self._policy, self._idle_timeout_s, seat.first_idle)
