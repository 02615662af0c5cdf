"""Follows a worker from the moment its HTTP is up until its model is loaded."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from gevent.event import Event

from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Timing
from rbee.hive.greenlets import start
from rbee.hive.ports import NoAnswer
from rbee.hive.supervision import Supervisor
from rbee.hive.workers import EndReason, WorkerRegistry, WorkerSeat

PATIENCE = 2.0
"""How many loading time-outs may pass without progress before the hive itself gives a load up.

The queen decides on the time-out of a task; this only makes sure that no worker loads for ever after its
queen has gone, and it never ends a load that is slow but moving.
"""


class LoadingWatch:
    """Polls ``/v1/ready`` and listens to the loading stream, so that the end of loading is seen at once."""

    def __init__(self, registry: WorkerRegistry, supervisor: Supervisor, timing: Timing, log: Any) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._timing = timing
        self._log = log

    def begin(self, worker_id: str, seat: WorkerSeat) -> None:
        start(self._log, self._follow, worker_id, seat)

    def _follow(self, worker_id: str, seat: WorkerSeat) -> None:
        patience_s = PATIENCE * self._timing.loading_timeout_s
        progress = _Progress()
        stream = start(self._log, self._listen, seat, progress, patience_s)
        try:
            while self._is_loading(worker_id):
                self._supervisor.look(worker_id, seat, self._timing.ready_poll_timeout_s, "loading")
                if not self._is_loading(worker_id):
                    return
                if time.monotonic() - progress.moved > patience_s:
                    self._supervisor.stop(worker_id, EndReason.LOADING_STUCK)
                    return
                progress.is_over.wait(self._timing.ready_poll_interval_s)
                progress.is_over.clear()
        finally:
            stream.kill(block=False)

    def _listen(self, seat: WorkerSeat, progress: _Progress, silence_s: float) -> None:
        # A worker without that stream, or one that dies, is noticed by the poll and the process watch.
        with contextlib.suppress(NoAnswer):
            for event in seat.connection.loading_events(silence_s):
                progress.moved = time.monotonic()
                if event.get("stage") in ("ready", "error"):
                    progress.is_over.set()

    def _is_loading(self, worker_id: str) -> bool:
        record = self._registry.find(worker_id)
        return record is not None and record.state in (WorkerState.LOADING, WorkerState.UNHEALTHY)


class _Progress:
    """What the loading stream told last."""

    def __init__(self) -> None:
        self.moved = time.monotonic()
        self.is_over = Event()
