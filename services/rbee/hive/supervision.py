"""Keeps the registry true: asks workers, watches their processes, and releases what an ended one held."""

from __future__ import annotations

import signal
from typing import Any

import gevent

from rbee.core.errors import RbeeError, WorkerStartFailed
from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Settings
from rbee.hive.greenlets import start
from rbee.hive.metrics import HiveMetrics
from rbee.hive.policy import stop_schedule
from rbee.hive.ports import NoAnswer, PidJournal, WorkerLauncher, WorkerProcess, WorkerReport
from rbee.hive.startup import FailedStarts
from rbee.hive.stopping import WorkerStopper
from rbee.hive.vram import VramRecovery
from rbee.hive.worker_ports import WorkerPorts
from rbee.hive.workers import EndReason, WorkerRecord, WorkerRegistry, WorkerSeat

CRASH_LOG_LINES = 20


class Supervisor:
    """What is done for every worker from the start of its process until nothing of it is left."""

    def __init__(
        self,
        registry: WorkerRegistry,
        stopper: WorkerStopper,
        ports: WorkerPorts,
        launcher: WorkerLauncher,
        journal: PidJournal,
        vram: VramRecovery,
        settings: Settings,
        metrics: HiveMetrics,
        log: Any,
    ) -> None:
        self._registry = registry
        self._stopper = stopper
        self._ports = ports
        self._launcher = launcher
        self._journal = journal
        self._vram = vram
        self._schedule = stop_schedule(settings.timing)
        self._error_shown_s = settings.timing.ready_poll_interval_s
        self._metrics = metrics
        self._log = log
        self._asked_again: set[str] = set()
        self.failed_starts = FailedStarts()

    def refresh(self, timeout_s: float) -> list[WorkerRecord]:
        """Ask all workers for their state, in parallel, and give their records.

        A worker that is known to be silent is asked again too, but nobody waits for it: one that hangs would
        otherwise delay every request to this node.
        """
        asked: list[tuple[str, WorkerSeat]] = []
        for record, seat in self._registry.seated():
            if not can_answer(record, seat):
                continue
            if not seat.is_silent and record.state is not WorkerState.UNHEALTHY:
                asked.append((record.id, seat))
            elif record.id not in self._asked_again:
                self._asked_again.add(record.id)
                start(self._log, self._look_again, record.id, seat, timeout_s)
        if len(asked) == 1:
            self._look_for_list(*asked[0], timeout_s)
        elif asked:
            gevent.joinall([start(self._log, self._look_for_list, *who, timeout_s) for who in asked])
        return self._registry.records()

    def look(self, worker_id: str, seat: WorkerSeat, timeout_s: float, reason: str) -> bool:
        """Read ``/v1/ready`` and take it over; whether an answer came."""
        try:
            report = seat.connection.ready(timeout_s)
        except NoAnswer:
            return False
        self.take(worker_id, seat, report, reason)
        return True

    def take(self, worker_id: str, seat: WorkerSeat, report: WorkerReport, reason: str) -> None:
        """Act on what a worker said about itself."""
        seat.is_silent = False
        if report.state is WorkerState.ERROR:
            self._registry.touch(worker_id)
            self._end_failed_load(worker_id, seat)
            return
        self._registry.observe(worker_id, report, reason)
        if report.state is WorkerState.DRAINING and not seat.stop_asked.is_set():
            self.stop(worker_id, EndReason.BY_ITSELF)

    def stop(self, worker_id: str, reason: EndReason) -> None:
        """Begin to end a worker: ask it, then escalate.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        record = self._registry.get(worker_id)
        if record.backend == "cuda" and record.state is not WorkerState.DRAINING:
            self._vram.note(worker_id, record.device)
        self._stopper.begin(worker_id, reason, self._schedule)

    def attend(self, worker_id: str, seat: WorkerSeat, process: WorkerProcess) -> None:
        """Watch a process that has just been started."""
        start(self._log, self._await_end, worker_id, seat, process)

    def release(self, worker_id: str, seat: WorkerSeat, reason: EndReason, error: RbeeError) -> None:
        """Take the worker out of the registry and free its port, journal row, key file and connections.

        Args:
            error: what readers of its start-up are told if the start was not over.
        """
        seat.startup.fail(error)
        if seat.startup.error is not None:
            self.failed_starts.keep(worker_id, seat.startup)
        record = self._registry.remove(worker_id, reason)
        if record is None:
            return
        self._ports.release(seat.port)
        self._launcher.forget(worker_id)
        seat.connection.close()
        try:
            self._journal.remove(worker_id)
        except RbeeError as failure:
            self._log.warning("journal_not_written", message=failure.message, worker_id=worker_id)
        if record.backend == "cuda" and seat.process is not None:
            self._vram.await_recovery(worker_id, record.device, seat.vram_bytes)
        self._metrics.stopped(reason)
        seat.gone.set()

    def _look_for_list(self, worker_id: str, seat: WorkerSeat, timeout_s: float) -> None:
        seat.is_silent = not self.look(worker_id, seat, timeout_s, "refresh")

    def _look_again(self, worker_id: str, seat: WorkerSeat, timeout_s: float) -> None:
        try:
            self._look_for_list(worker_id, seat, timeout_s)
        finally:
            self._asked_again.discard(worker_id)

    def _await_end(self, worker_id: str, seat: WorkerSeat, process: WorkerProcess) -> None:
        status = process.wait()
        # The leader is gone; the rest of its group must not stay behind.
        process.signal_group(signal.SIGKILL)
        told = exit_text(status)
        if seat.stop_asked.is_set() and seat.end_reason is not None:
            reason = seat.end_reason
        else:
            reason = EndReason.BY_ITSELF if status == 0 else EndReason.CRASHED
        facts = {"worker_id": worker_id, "pid": process.pid, "exit_status": status}
        if reason is EndReason.CRASHED:
            self._metrics.crashed()
            lines = self._launcher.last_lines(worker_id, CRASH_LOG_LINES)
            message = f"worker {worker_id} crashed ({told})"
            self._log.error("worker_crashed", message=message, **facts, last_lines=lines)
        else:
            message = f"worker {worker_id} ended ({told}): {reason.replace('_', ' ')}"
            self._log.info("worker_ended", message=message, **facts, reason=reason)
        log_path = str(self._launcher.log_path(worker_id))
        error = WorkerStartFailed(f"the process ended ({told})", exit_code=status, log_path=log_path)
        self.release(worker_id, seat, reason, error)

    def _end_failed_load(self, worker_id: str, seat: WorkerSeat) -> None:
        """Loading failed: who waits for the worker gets one poll interval to read why, then it is ended."""
        if seat.end_reason is not None:
            return
        seat.end_reason = EndReason.LOADING_FAILED
        self._registry.drain(worker_id, EndReason.LOADING_FAILED)

        def end() -> None:
            if not seat.gone.is_set() and not seat.stop_asked.wait(self._error_shown_s):
                self.stop(worker_id, EndReason.LOADING_FAILED)

        start(self._log, end)


def can_answer(record: WorkerRecord, seat: WorkerSeat) -> bool:
    """Whether the worker's HTTP has been seen, and it is not being ended."""
    return seat.up.is_set() and record.state is not WorkerState.DRAINING


def exit_text(status: int) -> str:
    """An exit status in words, e.g. ``exit status 1`` or ``killed by SIGKILL``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
