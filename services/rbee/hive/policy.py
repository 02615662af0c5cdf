"""When a worker is ended: keep-alive, and the schedule of a shutdown. Pure functions of records and times."""

from __future__ import annotations

from dataclasses import dataclass

from rbee.core.clock import parse_utc
from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Timing
from rbee.hive.workers import WorkerRecord

_RESERVE_S = 5.0
"""What is left between the end of draining and the kill."""


def idle_deadline(
    record: WorkerRecord, policy: str, idle_timeout_s: float, first_idle: str | None
) -> float | None:
    """When (Unix seconds) an idle worker is to be ended; None: not while it stays as it is.

    Args:
        policy: ``auto``, ``infinite``, or ``immediate`` (right after a request; before its first request a
            worker is kept like under ``auto``).
        first_idle: ``idle_since`` of the moment the model was loaded.
    """
    if record.state is not WorkerState.IDLE or record.idle_since is None or policy == "infinite":
        return None
    has_served = first_idle is not None and record.idle_since != first_idle
    wait_s = 0.0 if policy == "immediate" and has_served else idle_timeout_s
    return parse_utc(record.idle_since) + wait_s


def needs_look(
    record: WorkerRecord, seen_unix: float, now: float, policy: str, idle_timeout_s: float
) -> bool:
    """Whether the state is to be read again so that the end of its idle time is not missed.

    Nothing tells the hive that a busy worker has become idle, or that an idle one was used in between.
    Reading it three times per idle time is enough: the deadline counts from the worker's own ``idle_since``.
    """
    if policy == "immediate":
        return record.state in (WorkerState.IDLE, WorkerState.BUSY)
    return policy == "auto" and record.state is WorkerState.BUSY and now - seen_unix >= idle_timeout_s / 3


@dataclass(frozen=True)
class StopSchedule:
    """How long each step of ending a worker may take, in seconds from the beginning."""

    acknowledge_s: float
    """No acknowledgement of the request until then: SIGTERM."""
    react_s: float
    """No reaction at all until then: SIGKILL."""
    drain_s: float
    """What the worker is told running requests may take."""
    total_s: float
    """Whatever is left then: SIGKILL."""


def stop_schedule(timing: Timing) -> StopSchedule:
    """The schedule of ending one worker (idle, or on request)."""
    return StopSchedule(
        timing.shutdown_ack_timeout_s,
        timing.shutdown_kill_after_s,
        timing.worker_drain_timeout_s,
        timing.worker_drain_timeout_s + min(_RESERVE_S, timing.worker_drain_timeout_s),
    )


def cascade_schedule(timing: Timing) -> StopSchedule:
    """The schedule of ending every worker because the hive ends."""
    total = timing.hive_shutdown_timeout_s
    reserve = min(_RESERVE_S, total / 2)
    return StopSchedule(timing.shutdown_ack_timeout_s, timing.shutdown_kill_after_s, total - reserve, total)
