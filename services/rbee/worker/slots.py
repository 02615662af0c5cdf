"""Who may generate: the worker's state and its slots, changed in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gevent.event import Event

from rbee.core.clock import utc_iso
from rbee.core.errors import AllSlotsBusy, RequestConflict, WorkerNotReady
from rbee.core.lifecycle import WorkerState, may_move


@dataclass(frozen=True, slots=True)
class SlotView:
    """The worker at one moment, as health and readiness answers show it."""

    state: WorkerState
    slots_total: int
    slots_available: int
    active_requests: int
    idle_since: str | None
    """None unless it has been free of requests since then."""

    def fields(self) -> dict[str, Any]:
        return {
            "state": str(self.state),
            "slots_total": self.slots_total,
            "slots_available": self.slots_available,
            "active_requests": self.active_requests,
            "idle_since": self.idle_since,
        }


class Slots:
    """Counts requests against ``total``; nothing here yields, so taking a slot is atomic among greenlets."""

    def __init__(
        self,
        total: int,
        *,
        now: Callable[[], float] = time.time,
        on_move: Callable[[WorkerState, WorkerState], None] = lambda _old, _new: None,
    ) -> None:
        self._total = total
        self._now = now
        self._on_move = on_move
        self._state = WorkerState.LOADING
        self._active: dict[str, Slot] = {}
        self._idle_since: float | None = None
        self._empty = Event()
        self._empty.set()

    @property
    def total(self) -> int:
        return self._total

    @property
    def busy(self) -> int:
        return len(self._active)

    @property
    def state(self) -> WorkerState:
        return self._state

    def view(self) -> SlotView:
        accepts = self._state in (WorkerState.IDLE, WorkerState.BUSY)
        return SlotView(
            state=self._state,
            slots_total=self._total,
            slots_available=self._total - len(self._active) if accepts else 0,
            active_requests=len(self._active),
            idle_since=None if self._idle_since is None else utc_iso(self._idle_since),
        )

    def open(self) -> None:
        """The model is loaded: accept requests. A worker that drains already stays so."""
        if self._state is WorkerState.LOADING:
            self._move(WorkerState.IDLE)
            self._idle_since = self._now()

    def fail(self) -> None:
        """Loading failed; no request will ever be accepted."""
        if self._state is WorkerState.LOADING:
            self._move(WorkerState.ERROR)

    def drain(self) -> None:
        """Accept nothing more; requests that hold a slot keep it."""
        self._move(WorkerState.DRAINING)
        self._idle_since = None

    def check(self, request_id: str) -> None:
        """Whether ``take`` would succeed now.

        Raises:
            WorkerNotReady: loading, draining or failed.
            RequestConflict: the id holds a slot already.
            AllSlotsBusy: no slot is free.
        """
        if self._state not in (WorkerState.IDLE, WorkerState.BUSY):
            raise WorkerNotReady(self._state)
        if request_id in self._active:
            raise RequestConflict(request_id)
        if len(self._active) >= self._total:
            raise AllSlotsBusy(self._total, len(self._active))

    def take(self, request_id: str) -> Slot:
        """Reserve a slot; raises what ``check`` raises."""
        self.check(request_id)
        slot = Slot(request_id, self._give_back)
        self._active[request_id] = slot
        self._idle_since = None
        self._empty.clear()
        if len(self._active) == self._total:
            self._move(WorkerState.BUSY)
        return slot

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no request holds a slot; False when one still does after ``timeout_s``."""
        return bool(self._empty.wait(timeout_s))

    def _give_back(self, request_id: str) -> None:
        del self._active[request_id]
        if self._state is WorkerState.BUSY:
            self._move(WorkerState.IDLE)
        if not self._active:
            self._empty.set()
            if self._state is WorkerState.IDLE:
                self._idle_since = self._now()

    def _move(self, following: WorkerState) -> None:
        current = self._state
        if current is following:
            return
        if not may_move(current, following):
            raise RuntimeError(f"a worker cannot move from {current} to {following}")
        self._state = following
        self._on_move(current, following)


class Slot:
    """The right to one generation; giving it back twice does no harm."""

    def __init__(self, request_id: str, give_back: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._give_back: Callable[[str], None] | None = give_back

    def release(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self.request_id)
