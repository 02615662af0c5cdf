"""How waiting requests come to the engine."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from rbee.worker.batching import CPU_COSTS, Candidate
from rbee.worker.lanes import LanePlan, Lanes

GATHER_S = 0.2
"""Long beside what a busy machine may take between two steps of a test."""


class Engine:
    """Holds every batch until it is told to let go."""

    def __init__(self, slots: int, usual: int, patience_s: float = 60) -> None:
        plan = LanePlan(slots, usual, CPU_COSTS, patience_s, GATHER_S, gather_most_s=2)
        self.lanes: Lanes[str] = Lanes(plan, self._run)
        self.batches: list[list[str]] = []
        self.ends: list[Event] = []

    def ask(self, name: str, length: int = 40) -> Callable[[], bool]:
        """Returns what withdraws the job."""
        waiting = self.lanes.add(name, Candidate(length, 64, "greedy"))
        return lambda: self.lanes.withdraw(waiting)

    def _run(self, jobs: list[str]) -> None:
        end = Event()
        self.batches.append(jobs)
        self.ends.append(end)
        end.wait()
        for _ in jobs:
            self.lanes.finished()

    def wait_batches(self, count: int) -> list[list[str]]:
        with gevent.Timeout(5):
            while len(self.batches) < count:
                gevent.sleep(0.002)
        return self.batches


@pytest.fixture
def engine() -> Engine:
    return Engine(slots=8, usual=1)


def test_requests_that_come_together_run_together(engine: Engine) -> None:
    for name in "abc":
        engine.ask(name)
        gevent.sleep(0.002)
    assert engine.wait_batches(1) == [["a", "b", "c"]]


def test_nobody_is_waited_for_when_all_slots_are_taken() -> None:
    engine = Engine(slots=2, usual=1)
    engine.ask("a")
    engine.ask("b")
    gevent.sleep(0)
    gevent.sleep(0)
    assert engine.batches == [["a", "b"]]


def test_those_who_come_during_a_batch_make_the_next_one(engine: Engine) -> None:
    engine.ask("a")
    engine.wait_batches(1)
    engine.ask("b")
    engine.ask("c")
    gevent.sleep(2 * GATHER_S)
    assert engine.batches == [["a"]]
    engine.ends[0].set()
    assert engine.wait_batches(2) == [["a"], ["b", "c"]]


def test_an_idle_lane_is_used_at_once() -> None:
    engine = Engine(slots=8, usual=2)
    engine.ask("a")
    engine.wait_batches(1)
    engine.ask("b")
    assert engine.wait_batches(2) == [["a"], ["b"]]


def test_a_long_batch_does_not_hold_anybody_for_ever() -> None:
    """The first batch never ends; after the patience another lane opens beside it."""
    engine = Engine(slots=8, usual=1, patience_s=0.1)
    engine.ask("a")
    engine.wait_batches(1)
    engine.ask("b")
    assert engine.wait_batches(2) == [["a"], ["b"]]
    assert not engine.ends[0].is_set()


def test_one_of_another_length_is_next_although_others_match_better(engine: Engine) -> None:
    engine.ask("a")
    engine.wait_batches(1)
    engine.ask("long", 2000)
    for name in "bcd":
        engine.ask(name)
    engine.ends[0].set()
    assert engine.wait_batches(2)[1] == ["long"]
    engine.ends[1].set()
    assert engine.wait_batches(3)[2] == ["b", "c", "d"]


def test_a_withdrawn_job_is_never_run(engine: Engine) -> None:
    engine.ask("a")
    engine.wait_batches(1)
    withdraw = engine.ask("b")
    engine.ask("c")
    assert withdraw()
    assert not withdraw()
    engine.ends[0].set()
    assert engine.wait_batches(2) == [["a"], ["c"]]


def test_a_job_under_way_cannot_be_withdrawn(engine: Engine) -> None:
    withdraw = engine.ask("a")
    engine.wait_batches(1)
    assert not withdraw()
