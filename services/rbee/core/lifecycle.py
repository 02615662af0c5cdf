"""The states of a worker and the moves between them."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    """What a worker is doing, as every list, probe and log line names it."""

    LOADING = "loading"
    """Reserved, converting, starting or loading."""
    IDLE = "idle"
    BUSY = "busy"
    """No slot is free."""
    DRAINING = "draining"
    """Shutting down: running requests may finish, new ones are refused."""
    UNHEALTHY = "unhealthy"
    """Known to the hive only: the last probe was missed."""
    ERROR = "error"
    """Known to the worker only: loading failed."""


MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.LOADING: frozenset(
        {WorkerState.IDLE, WorkerState.DRAINING, WorkerState.UNHEALTHY, WorkerState.ERROR}
    ),
    WorkerState.IDLE: frozenset({WorkerState.BUSY, WorkerState.DRAINING, WorkerState.UNHEALTHY}),
    WorkerState.BUSY: frozenset({WorkerState.IDLE, WorkerState.DRAINING, WorkerState.UNHEALTHY}),
    WorkerState.UNHEALTHY: frozenset(
        {WorkerState.LOADING, WorkerState.IDLE, WorkerState.BUSY, WorkerState.DRAINING}
    ),
    WorkerState.DRAINING: frozenset(),
    WorkerState.ERROR: frozenset({WorkerState.DRAINING}),
}
"""Which state may follow which; a removed worker has no state."""


def may_move(current: WorkerState, following: WorkerState) -> bool:
    """Whether ``following`` may come after ``current`` (staying is always allowed)."""
    return current is following or following in MOVES[current]


class StopReason(StrEnum):
    """Why a generation ended normally."""

    MAX_TOKENS = "MAX_TOKENS"
    EOS = "EOS"
    STOP_SEQUENCE = "STOP_SEQUENCE"
