"""The registry of this node's workers: frozen records, one writer of their state, every change an event."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from gevent.event import Event

from rbee.core.clock import utc_iso
from rbee.core.errors import WorkerNotFound
from rbee.core.lifecycle import WorkerState, may_move
from rbee.hive.memory_claims import MemoryClaim
from rbee.hive.ports import WorkerConnection, WorkerProcess, WorkerReport
from rbee.hive.startup import StartupLog

PASSING_STATES = (WorkerState.IDLE, WorkerState.LOADING)
"""States a worker can pass through between two looks, so that they are never seen."""


class EndReason(StrEnum):
    """Why a worker came to its end, as logs and metrics name it."""

    IDLE_TIMEOUT = "idle_timeout"
    REQUESTED = "requested"
    HIVE_SHUTDOWN = "hive_shutdown"
    START_FAILED = "start_failed"
    LOADING_FAILED = "loading_failed"
    LOADING_STUCK = "loading_stuck"
    UNHEALTHY = "unhealthy"
    CRASHED = "crashed"
    BY_ITSELF = "by_itself"
    """It began to shut down, or ended with status 0, without having been asked to."""


@dataclass(frozen=True)
class WorkerRecord:
    """A worker as lists show it. Times are ISO-8601 UTC."""

    id: str
    url: str
    model_ref: str
    backend: str
    device: int
    state: WorkerState
    slots_total: int
    slots_available: int
    last_activity: str
    idle_since: str | None
    pid: int | None
    failed_health_checks: int
    log_path: str

    def wire(self) -> dict[str, Any]:
        """The record in the form of ``GET /v1/workers/list``."""
        return dict(vars(self))


@dataclass(frozen=True)
class WorkerEvent:
    """One change of one worker. ``after`` is None when it was removed, ``before`` when it is new."""

    worker_id: str
    before: WorkerState | None
    after: WorkerState | None
    reason: str
    unix: float


@dataclass
class WorkerSeat:
    """What belongs to a worker beside its record; never listed."""

    key: str
    port: int
    connection: WorkerConnection
    startup: StartupLog = field(default_factory=StartupLog)
    process: WorkerProcess | None = None
    model_folder: Path | None = None
    """What its process loads; None until it is started."""
    up: Event = field(default_factory=Event)
    """Set when its HTTP has been seen, by callback or by poll."""
    stop_asked: Event = field(default_factory=Event)
    end_reason: EndReason | None = None
    """Why it is being ended; None while it is not."""
    is_killed: bool = False
    """SIGKILL has been sent; there is nothing more to send."""
    gone: Event = field(default_factory=Event)
    """Set after the record has been removed and everything released."""
    first_idle: str | None = None
    """Its ``idle_since`` when the model was loaded; a later one means that it has served a request."""
    vram_bytes: int | None = None
    claim: MemoryClaim | None = None
    """What it was admitted with, until its model is loaded; goes with the seat when it never is."""
    is_silent: bool = False
    """It gave no answer when it was last asked for a list; later lists do not wait for it."""
    seen_unix: float = 0.0
    """When it last answered."""


class WorkerRegistry:
    """All workers of this hive; nothing else changes a record.

    Args:
        on_event: told of every change, in order.
        clock: Unix seconds.
    """

    def __init__(
        self, on_event: Callable[[WorkerEvent], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._records: dict[str, WorkerRecord] = {}
        self._seats: dict[str, WorkerSeat] = {}
        self._on_event = on_event
        self._clock = clock

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: WorkerRecord, seat: WorkerSeat, reason: str) -> None:
        """Enter a new worker, whatever state its record says."""
        self._records[record.id] = record
        self._seats[record.id] = seat
        self._tell(record.id, None, record.state, reason)

    def find(self, worker_id: str) -> WorkerRecord | None:
        return self._records.get(worker_id)

    def get(self, worker_id: str) -> WorkerRecord:
        """The record.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        record = self._records.get(worker_id)
        if record is None:
            raise WorkerNotFound(worker_id)
        return record

    def seat(self, worker_id: str) -> WorkerSeat:
        """What belongs to the worker beside its record.

        Raises:
            WorkerNotFound: there is no such worker.
        """
        seat = self._seats.get(worker_id)
        if seat is None:
            raise WorkerNotFound(worker_id)
        return seat

    def seated(self) -> list[tuple[WorkerRecord, WorkerSeat]]:
        """All records with what belongs to them."""
        return [(record, self._seats[worker_id]) for worker_id, record in self._records.items()]

    def records(self) -> list[WorkerRecord]:
        """All records, in the order in which the workers were spawned."""
        return list(self._records.values())

    def open_claims(self) -> list[tuple[MemoryClaim, int | None]]:
        """The claims of workers whose model is not loaded, with the pids of their processes."""
        return [
            (seat.claim, self._records[worker_id].pid)
            for worker_id, seat in self._seats.items()
            if seat.claim is not None
        ]

    def using(self, model_ref: str) -> list[str]:
        """Ids of the workers that serve or load a model."""
        return [record.id for record in self._records.values() if record.model_ref == model_ref]

    def model_folders(self) -> frozenset[Path]:
        """The folders that workers have loaded or load."""
        return frozenset(seat.model_folder for seat in list(self._seats.values()) if seat.model_folder)

    def models(self) -> frozenset[str]:
        """References of the models that workers serve, load or wait for."""
        return frozenset(record.model_ref for record in list(self._records.values()))

    def started(self, worker_id: str, process: WorkerProcess) -> None:
        """The worker's process runs."""
        if worker_id in self._records:
            self._seats[worker_id].process = process
            self._change(worker_id, pid=process.pid)

    def observe(self, worker_id: str, report: WorkerReport, reason: str) -> None:
        """Take over what a worker said about itself.

        An answer that cannot follow the present state (one that was overtaken by a later change) only counts
        as a sign of life. Strikes end with any answer.
        """
        record = self._records.get(worker_id)
        if record is None:
            return
        now = self._clock()
        seat = self._seats[worker_id]
        seat.seen_unix = now
        seat.vram_bytes = report.vram_bytes or seat.vram_bytes
        self._change(worker_id, last_activity=utc_iso(now), failed_health_checks=0)
        way = _way(record.state, report.state)
        if way is None:
            return
        for state in way:
            self._move(worker_id, state, reason)
        self._change(
            worker_id,
            slots_total=report.slots_total,
            slots_available=report.slots_available if report.state is WorkerState.IDLE else 0,
            idle_since=report.idle_since,
        )
        if seat.first_idle is None and report.idle_since is not None:
            seat.first_idle = report.idle_since

    def touch(self, worker_id: str) -> None:
        """A sign of life without a report."""
        if worker_id in self._records:
            now = self._clock()
            self._seats[worker_id].seen_unix = now
            self._change(worker_id, last_activity=utc_iso(now))

    def strike(self, worker_id: str, reason: str) -> int:
        """A probe was missed; the number of consecutive misses."""
        record = self._records.get(worker_id)
        if record is None:
            return 0
        strikes = record.failed_health_checks + 1
        self._change(worker_id, failed_health_checks=strikes)
        if may_move(record.state, WorkerState.UNHEALTHY):
            self._move(worker_id, WorkerState.UNHEALTHY, reason)
            self._change(worker_id, slots_available=0)
        return strikes

    def drain(self, worker_id: str, reason: str) -> None:
        """The worker is being ended."""
        record = self._records.get(worker_id)
        if record is not None and record.state is not WorkerState.DRAINING:
            self._move(worker_id, WorkerState.DRAINING, reason)
            self._change(worker_id, slots_available=0, idle_since=None)

    def remove(self, worker_id: str, reason: str) -> WorkerRecord | None:
        """Take the worker out; None when it was not there."""
        record = self._records.pop(worker_id, None)
        if record is not None:
            del self._seats[worker_id]
            self._tell(worker_id, record.state, None, reason)
        return record

    def _move(self, worker_id: str, state: WorkerState, reason: str) -> None:
        before = self._records[worker_id].state
        if before is state:
            return
        if not may_move(before, state):
            raise AssertionError(f"a worker cannot go from {before} to {state}")
        self._change(worker_id, state=state)
        if state in (WorkerState.IDLE, WorkerState.BUSY):
            self._seats[worker_id].claim = None
        self._tell(worker_id, before, state, reason)

    def _change(self, worker_id: str, **fields: Any) -> None:
        self._records[worker_id] = replace(self._records[worker_id], **fields)

    def _tell(
        self, worker_id: str, before: WorkerState | None, after: WorkerState | None, reason: str
    ) -> None:
        self._on_event(WorkerEvent(worker_id, before, after, reason, self._clock()))


def _way(current: WorkerState, seen: WorkerState) -> tuple[WorkerState, ...] | None:
    """The moves from ``current`` to what was seen, over at most one that nobody saw; None: impossible."""
    if may_move(current, seen):
        return (seen,)
    for first in PASSING_STATES:
        if first is not current and may_move(current, first) and may_move(first, seen):
            return (first, seen)
    return None
