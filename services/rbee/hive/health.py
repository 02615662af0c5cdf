"""Health probes: every worker at the same interval, strikes for missed ones, the end at the last strike."""

from __future__ import annotations

from typing import Any

from rbee.core.settings import Timing
from rbee.hive.greenlets import start
from rbee.hive.metrics import HiveMetrics
from rbee.hive.ports import NoAnswer
from rbee.hive.stopping import WorkerStopper
from rbee.hive.supervision import Supervisor, can_answer
from rbee.hive.vram import VramRecovery
from rbee.hive.workers import EndReason, WorkerRegistry, WorkerSeat


class HealthProbes:
    """One round asks every worker in parallel; a worker that hangs delays no other."""

    def __init__(
        self,
        registry: WorkerRegistry,
        supervisor: Supervisor,
        stopper: WorkerStopper,
        vram: VramRecovery,
        timing: Timing,
        metrics: HiveMetrics,
        log: Any,
    ) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._stopper = stopper
        self._vram = vram
        self._timing = timing
        self._metrics = metrics
        self._log = log
        self._under_way: set[str] = set()

    def probe_all(self) -> None:
        """Start a probe of every worker whose last one is over."""
        for record, seat in self._registry.seated():
            if can_answer(record, seat) and record.id not in self._under_way:
                self._under_way.add(record.id)
                start(self._log, self._probe, record.id, seat)

    def _probe(self, worker_id: str, seat: WorkerSeat) -> None:
        try:
            report = seat.connection.health(self._timing.health_probe_timeout_s)
        except NoAnswer as missed:
            self._metrics.probed("missed")
            self._strike(worker_id, seat, missed.reason)
        else:
            self._metrics.probed("ok")
            self._supervisor.take(worker_id, seat, report, "health probe")
            record = self._registry.find(worker_id)
            if record is not None and record.backend == "cuda":
                # A crash leaves no moment to look before the memory is gone.
                self._vram.note(worker_id, record.device)
        finally:
            self._under_way.discard(worker_id)

    def _strike(self, worker_id: str, seat: WorkerSeat, why: str) -> None:
        limit = self._timing.health_probe_strikes
        strikes = self._registry.strike(worker_id, f"health probe missed: {why}")
        if strikes == 0:
            return
        message = f"worker {worker_id} missed health probe {strikes} of {limit}: {why}"
        self._log.warning("health_strike", message=message, worker_id=worker_id, strikes=strikes)
        if strikes >= limit:
            self._stopper.give_up(
                worker_id, seat, EndReason.UNHEALTHY, f"{strikes} health probes missed in a row"
            )
