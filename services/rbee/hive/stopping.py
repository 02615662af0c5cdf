"""Ends a worker: ask, then signal, then kill, each at its time; never twice for the same worker."""

from __future__ import annotations

import signal
import time
from typing import Any

from rbee.core.lifecycle import WorkerState
from rbee.hive.greenlets import start
from rbee.hive.metrics import HiveMetrics
from rbee.hive.policy import StopSchedule
from rbee.hive.ports import NoAnswer
from rbee.hive.workers import EndReason, WorkerRegistry, WorkerSeat

_LOOK_AGAIN_S = 1.0


class WorkerStopper:
    """Begins and carries out the end of workers; the record is removed by whoever watches the process."""

    def __init__(self, registry: WorkerRegistry, metrics: HiveMetrics, log: Any) -> None:
        self._registry = registry
        self._metrics = metrics
        self._log = log

    def begin(self, worker_id: str, reason: EndReason, schedule: StopSchedule) -> None:
        """Start ending a worker and return at once.

        A second call for the same worker changes nothing: it is being ended. One whose process does not run
        yet is ended by whoever is about to start it.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        seat = self._registry.seat(worker_id)
        self._registry.drain(worker_id, reason)
        if seat.stop_asked.is_set():
            return
        seat.end_reason = seat.end_reason or reason
        seat.stop_asked.set()
        if seat.process is not None:
            start(self._log, self.carry_out, worker_id, seat, schedule)

    def give_up(self, worker_id: str, seat: WorkerSeat, reason: EndReason, why: str) -> None:
        """End a worker without asking it: it does not answer, or never came up."""
        self._registry.drain(worker_id, reason)
        seat.end_reason = seat.end_reason or reason
        seat.stop_asked.set()
        self.kill(worker_id, seat, signal.SIGKILL, why)

    def carry_out(self, worker_id: str, seat: WorkerSeat, schedule: StopSchedule) -> None:
        """Ask the process to end and escalate until it is gone."""
        begun = time.monotonic()
        if not self._asked_to_end(worker_id, seat, schedule):
            self.kill(worker_id, seat, signal.SIGTERM, "no acknowledgement of the shutdown request")
            if not self._reacts(seat, begun + schedule.react_s):
                self.kill(worker_id, seat, signal.SIGKILL, "no reaction to the shutdown")
        if not seat.gone.wait(max(0.0, begun + schedule.total_s - time.monotonic())):
            self.kill(worker_id, seat, signal.SIGKILL, "still running when the time was over")

    def kill(self, worker_id: str, seat: WorkerSeat, number: signal.Signals, reason: str) -> None:
        """Signal the worker's process group and tell the log."""
        if seat.process is None or seat.gone.is_set() or seat.is_killed:
            return
        seat.is_killed = number == signal.SIGKILL
        if seat.process.signal_group(number):
            self._log.warning(
                "forced_kill",
                message=f"{number.name} to worker {worker_id}: {reason}",
                worker_id=worker_id,
                pid=seat.process.pid,
                reason=reason,
                signal=number.name,
            )
            self._metrics.forced_kill(number.name)

    def _asked_to_end(self, worker_id: str, seat: WorkerSeat, schedule: StopSchedule) -> bool:
        """Whether the worker acknowledged the request, or ended."""
        try:
            seat.connection.shut_down(schedule.drain_s, schedule.acknowledge_s)
        except NoAnswer as error:
            self._log.info("shutdown_not_acknowledged", message=error.reason, worker_id=worker_id)
            return bool(seat.gone.is_set())
        return True

    def _reacts(self, seat: WorkerSeat, deadline: float) -> bool:
        """Whether the worker ends, or at least says that it is draining, before the deadline."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                if seat.connection.ready(min(left, _LOOK_AGAIN_S)).state is WorkerState.DRAINING:
                    return True
            except NoAnswer:
                pass
            if seat.gone.wait(min(max(0.0, deadline - time.monotonic()), _LOOK_AGAIN_S / 5)):
                return True
        return bool(seat.gone.is_set())
