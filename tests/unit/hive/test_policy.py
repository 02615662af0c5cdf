"""When an idle worker ends, when it is looked at again, and how long each step of a shutdown takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rbee.core.clock import utc_iso
from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Timing
from rbee.hive.policy import cascade_schedule, idle_deadline, needs_look, stop_schedule
from rbee.hive.workers import WorkerRecord

T0 = 1_700_000_000.0
WORKER = WorkerRecord(
    id="worker-a",
    url="http://127.0.0.1:8001",
    model_ref="hf:a/b",
    backend="cpu",
    device=0,
    state=WorkerState.IDLE,
    slots_total=1,
    slots_available=1,
    last_activity=utc_iso(T0),
    idle_since=utc_iso(T0),
    pid=1,
    failed_health_checks=0,
    log_path="/x",
)


def test_the_time_counts_from_what_the_worker_says() -> None:
    assert idle_deadline(WORKER, "auto", 300, utc_iso(T0)) == pytest.approx(T0 + 300)


@pytest.mark.parametrize("state", [s for s in WorkerState if s is not WorkerState.IDLE])
def test_only_an_idle_worker_has_a_deadline(state: WorkerState) -> None:
    assert idle_deadline(replace(WORKER, state=state), "auto", 300, None) is None


def test_a_worker_with_one_of_its_slots_taken_has_no_deadline() -> None:
    assert idle_deadline(replace(WORKER, idle_since=None), "auto", 300, None) is None


def test_infinite_keeps_workers_for_ever() -> None:
    assert idle_deadline(WORKER, "infinite", 300, utc_iso(T0 - 50)) is None


def test_immediate_ends_a_worker_after_its_request_but_not_before_it() -> None:
    assert idle_deadline(WORKER, "immediate", 300, utc_iso(T0)) == pytest.approx(T0 + 300)
    assert idle_deadline(WORKER, "immediate", 300, utc_iso(T0 - 50)) == pytest.approx(T0)


@pytest.mark.parametrize(
    ("state", "policy", "seen_s_ago", "expected"),
    [
        (WorkerState.BUSY, "auto", 1.1, True),
        (WorkerState.BUSY, "auto", 0.9, False),
        (WorkerState.IDLE, "auto", 100, False),
        (WorkerState.BUSY, "infinite", 100, False),
        (WorkerState.IDLE, "immediate", 0, True),
        (WorkerState.BUSY, "immediate", 0, True),
        (WorkerState.LOADING, "immediate", 100, False),
        (WorkerState.DRAINING, "auto", 100, False),
    ],
)
def test_a_busy_worker_is_read_again_often_enough(
    state: WorkerState, policy: str, seen_s_ago: float, expected: bool
) -> None:
    record = replace(WORKER, state=state, idle_since=None)
    assert needs_look(record, T0 - seen_s_ago, T0, policy, 3.0) is expected


def test_a_cascade_takes_thirty_seconds_and_lets_workers_drain_for_twenty_five() -> None:
    schedule = cascade_schedule(Timing())
    assert (schedule.acknowledge_s, schedule.react_s) == (5, 10)
    assert (schedule.drain_s, schedule.total_s) == (25, 30)


def test_a_short_cascade_still_leaves_time_between_draining_and_the_kill() -> None:
    schedule = cascade_schedule(Timing(hive_shutdown_timeout_s=4))
    assert (schedule.drain_s, schedule.total_s) == (2, 4)


def test_one_worker_gets_its_whole_drain_time() -> None:
    schedule = stop_schedule(Timing())
    assert (schedule.drain_s, schedule.total_s) == (30, 35)
