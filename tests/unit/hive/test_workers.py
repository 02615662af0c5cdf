"""The registry: moves follow the table, every change is told once, answers that come late change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.errors import WorkerNotFound
from rbee.core.lifecycle import WorkerState, may_move
from rbee.hive.ports import WorkerReport
from rbee.hive.workers import WorkerEvent, WorkerRecord, WorkerRegistry, WorkerSeat
from rbee.testing.fake_workers import FakeConnection

T0 = 1_700_000_000.0
IDLE_AT = "2023-11-14T22:13:20.000Z"


def a_record(worker_id: str = "worker-a", model_ref: str = "hf:a/b") -> WorkerRecord:
    return WorkerRecord(
        id=worker_id,
        url="http://127.0.0.1:8001",
        model_ref=model_ref,
        backend="cpu",
        device=0,
        state=WorkerState.LOADING,
        slots_total=1,
        slots_available=0,
        last_activity=IDLE_AT,
        idle_since=None,
        pid=None,
        failed_health_checks=0,
        log_path="/logs/worker-a.log",
    )


class Registry(WorkerRegistry):
    """A registry with one worker, a settable clock and a list of what it told."""

    def __init__(self) -> None:
        self.told: list[WorkerEvent] = []
        self.now = T0
        super().__init__(self.told.append, lambda: self.now)
        self.enter("worker-a")

    def enter(self, worker_id: str, model_ref: str = "hf:a/b") -> None:
        self.add(a_record(worker_id, model_ref), WorkerSeat("key", 8001, FakeConnection()), "spawn")

    def hear(self, state: WorkerState, idle_since: str | None = None, slots: int = 1) -> None:
        free = slots if state is WorkerState.IDLE else 0
        self.observe("worker-a", WorkerReport(state, slots, free, idle_since), "test")

    @property
    def record(self) -> WorkerRecord:
        return self.get("worker-a")

    @property
    def moves(self) -> list[tuple[str | None, str | None]]:
        return [(event.before, event.after) for event in self.told]


def test_a_new_worker_is_loading_without_slots_and_without_a_key_on_the_wire() -> None:
    wire = Registry().record.wire()
    assert (wire["state"], wire["slots_total"], wire["slots_available"]) == ("loading", 1, 0)
    assert wire["idle_since"] is None
    assert wire["pid"] is None
    assert set(wire) == {
        "id",
        "url",
        "model_ref",
        "backend",
        "device",
        "state",
        "slots_total",
        "slots_available",
        "last_activity",
        "idle_since",
        "pid",
        "failed_health_checks",
        "log_path",
    }


def test_a_loaded_worker_has_the_slots_and_the_idle_time_it_reports() -> None:
    registry = Registry()
    registry.hear(WorkerState.IDLE, IDLE_AT, slots=4)
    record = registry.record
    assert (record.state, record.slots_total, record.slots_available) == (WorkerState.IDLE, 4, 4)
    assert record.idle_since == IDLE_AT


def test_a_state_nobody_saw_is_still_told_on_the_way() -> None:
    registry = Registry()
    registry.hear(WorkerState.BUSY)
    assert registry.moves == [(None, "loading"), ("loading", "idle"), ("idle", "busy")]


def test_an_answer_that_was_overtaken_is_only_a_sign_of_life() -> None:
    registry = Registry()
    registry.hear(WorkerState.IDLE, IDLE_AT)
    registry.now += 5
    registry.hear(WorkerState.LOADING)
    assert registry.record.state is WorkerState.IDLE
    assert registry.record.slots_available == 1
    assert registry.record.last_activity == "2023-11-14T22:13:25.000Z"


def test_every_change_has_a_reason_and_a_time_and_is_told_once() -> None:
    registry = Registry()
    registry.now = T0 + 1.5
    registry.hear(WorkerState.IDLE, IDLE_AT)
    registry.hear(WorkerState.IDLE, IDLE_AT)
    assert registry.told[1:] == [
        WorkerEvent("worker-a", WorkerState.LOADING, WorkerState.IDLE, "test", T0 + 1.5)
    ]


def test_missed_probes_are_counted_and_one_answer_restores_the_worker() -> None:
    registry = Registry()
    registry.hear(WorkerState.IDLE, IDLE_AT)
    assert [registry.strike("worker-a", "silent") for _ in range(2)] == [1, 2]
    assert registry.record.state is WorkerState.UNHEALTHY
    assert registry.record.slots_available == 0
    assert registry.record.failed_health_checks == 2
    registry.hear(WorkerState.IDLE, IDLE_AT)
    assert registry.record.state is WorkerState.IDLE
    assert registry.record.slots_available == 1
    assert registry.record.failed_health_checks == 0


def test_a_draining_worker_stays_draining_whatever_it_says() -> None:
    registry = Registry()
    registry.drain("worker-a", "test")
    registry.hear(WorkerState.IDLE, IDLE_AT)
    registry.strike("worker-a", "silent")
    assert registry.record.state is WorkerState.DRAINING
    assert registry.record.slots_available == 0


def test_the_first_idle_time_is_kept_apart_from_later_ones() -> None:
    registry = Registry()
    registry.hear(WorkerState.IDLE, IDLE_AT)
    registry.hear(WorkerState.BUSY)
    registry.hear(WorkerState.IDLE, "2023-11-14T22:14:00.000Z")
    assert registry.seat("worker-a").first_idle == IDLE_AT
    assert registry.record.idle_since == "2023-11-14T22:14:00.000Z"


def test_a_removed_worker_is_unknown_and_later_news_of_it_are_ignored() -> None:
    registry = Registry()
    assert registry.remove("worker-a", "crashed") is not None
    assert registry.remove("worker-a", "crashed") is None
    registry.hear(WorkerState.IDLE)
    registry.touch("worker-a")
    registry.drain("worker-a", "late")
    assert registry.strike("worker-a", "late") == 0
    assert registry.records() == []
    assert registry.told[-1].after is None
    with pytest.raises(WorkerNotFound):
        registry.get("worker-a")
    with pytest.raises(WorkerNotFound):
        registry.seat("worker-a")


def test_workers_are_found_by_their_model() -> None:
    registry = Registry()
    registry.enter("worker-b", "hf:c/d")
    registry.enter("worker-c")
    assert registry.using("hf:a/b") == ["worker-a", "worker-c"]
    assert registry.using("hf:e/f") == []


ACTIONS = st.one_of(
    st.tuples(st.just("hear"), st.sampled_from([s for s in WorkerState if s is not WorkerState.ERROR])),
    st.tuples(st.just("strike"), st.none()),
    st.tuples(st.just("drain"), st.none()),
    st.tuples(st.just("touch"), st.none()),
)


@given(st.lists(ACTIONS, max_size=30))
def test_whatever_happens_every_told_move_is_in_the_table(
    actions: list[tuple[str, WorkerState | None]],
) -> None:
    registry = Registry()
    for action, state in actions:
        if action == "hear" and state is not None:
            registry.hear(state, IDLE_AT if state is WorkerState.IDLE else None)
        elif action == "strike":
            registry.strike("worker-a", "silent")
        elif action == "drain":
            registry.drain("worker-a", "test")
        else:
            registry.touch("worker-a")
        record = registry.record
        assert (record.slots_available > 0) <= (record.state is WorkerState.IDLE)
    steps = [event for event in registry.told if event.before is not None and event.after is not None]
    assert all(e.before and e.after and may_move(e.before, e.after) and e.before != e.after for e in steps)
    assert all(a.after == b.before for a, b in zip(registry.told, registry.told[1:], strict=False))
