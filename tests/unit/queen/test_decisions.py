"""The queen's pure decisions: which worker, which attempt, how long to wait."""

from __future__ import annotations

import itertools

import pytest

from rbee.core.lifecycle import WorkerState
from rbee.queen.placement import choose_worker
from rbee.queen.ports import WorkerRecord
from rbee.queen.retries import Attempt, attempt_line, attempts, busy_line, busy_wait_s

MODEL = "hf:ORG/REPO"


def worker(
    name: str, state: str = "idle", model: str = MODEL, backend: str = "cpu", device: int = 0
) -> WorkerRecord:
    return WorkerRecord(name, "http://h:8001", model, backend, device, WorkerState(state), 1, 0)


def test_idle_is_preferred_to_loading_and_loading_to_busy() -> None:
    workers = [worker("b", "busy"), worker("l", "loading"), worker("i", "idle")]
    for order in itertools.permutations(workers):
        chosen = choose_worker(order, MODEL, None, None)
        assert chosen is not None
        assert chosen.worker_id == "i"
    without_idle = choose_worker(workers[:2], MODEL, None, None)
    assert without_idle is not None
    assert without_idle.worker_id == "l"


@pytest.mark.parametrize("state", ["draining", "unhealthy", "error"])
def test_a_worker_on_its_way_out_is_never_chosen(state: str) -> None:
    assert choose_worker([worker("w", state)], MODEL, None, None) is None


def test_the_model_must_be_equal_as_text() -> None:
    assert choose_worker([worker("w", model=MODEL + ":Q8_0")], MODEL, None, None) is None


@pytest.mark.parametrize(
    ("backend", "device", "chosen"),
    [
        (None, None, "cpu0"),
        ("cuda", None, "cuda0"),
        ("cuda", 1, "cuda1"),
        ("cuda", 2, None),
        ("metal", None, None),
    ],
)
def test_backend_and_device_must_match_where_they_are_given(
    backend: str | None, device: int | None, chosen: str | None
) -> None:
    workers = [
        worker("cpu0"),
        worker("cuda0", backend="cuda"),
        worker("cuda1", backend="cuda", device=1),
    ]
    found = choose_worker(workers, MODEL, backend, device)
    assert (found.worker_id if found else None) == chosen


def test_an_excluded_worker_is_passed_over() -> None:
    chosen = choose_worker([worker("a"), worker("b")], MODEL, None, None, excluded={"a"})
    assert chosen is not None
    assert chosen.worker_id == "b"


def test_the_default_plan_makes_three_attempts_with_growing_delays() -> None:
    assert attempts(3, [0, 200, 400]) == [Attempt(1, 0), Attempt(2, 200), Attempt(3, 400)]


def test_more_attempts_than_delays_repeat_the_last_delay() -> None:
    assert [a.delay_ms for a in attempts(4, [0, 50])] == [0, 50, 50, 50]
    assert [a.delay_ms for a in attempts(2, [])] == [0, 0]


def test_attempt_lines_are_the_literal_ones() -> None:
    lines = [attempt_line(a, "unreachable.home.arpa", 9200, 10.0) for a in attempts(3, [0, 200, 400])]
    assert lines == [
        "Attempt 1: Connecting to unreachable.home.arpa:9200... (timeout 10s)",
        "Attempt 2: Connecting to unreachable.home.arpa:9200... (timeout 10s, delay 200ms)",
        "Attempt 3: Connecting to unreachable.home.arpa:9200... (timeout 10s, delay 400ms)",
    ]


def test_busy_waits_are_one_two_four_and_double_from_there() -> None:
    assert [busy_wait_s(i, [1, 2, 4]) for i in range(5)] == [1, 2, 4, 8, 16]


def test_busy_lines_are_the_literal_ones() -> None:
    assert [busy_line(w) for w in (1.0, 2.0, 4.0)] == [
        "Worker is busy, retrying in 1 second...",
        "Worker is busy, retrying in 2 seconds...",
        "Worker is busy, retrying in 4 seconds...",
    ]
