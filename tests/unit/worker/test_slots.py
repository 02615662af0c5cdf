"""Who may generate: states, slots, and since when a worker is idle."""

import pytest

from rbee.core.errors import AllSlotsBusy, RequestConflict, WorkerNotReady
from rbee.core.lifecycle import WorkerState
from rbee.worker.slots import Slots


class Clock:
    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(total: int, clock: Clock) -> Slots:
    slots = Slots(total, now=clock)
    slots.open()
    return slots


def test_a_loading_worker_has_no_slot_available_and_is_not_idle(clock: Clock) -> None:
    view = Slots(2, now=clock).view()
    assert (view.state, view.slots_total, view.slots_available, view.idle_since) == ("loading", 2, 0, None)


def test_a_loading_worker_refuses_requests(clock: Clock) -> None:
    with pytest.raises(WorkerNotReady) as refused:
        Slots(1, now=clock).take("a")
    assert refused.value.details == {"state": "loading"}


def test_a_loaded_worker_is_idle_since_it_was_loaded(clock: Clock) -> None:
    view = opened(1, clock).view()
    assert view.state is WorkerState.IDLE
    assert view.slots_available == 1
    assert view.idle_since == "2023-11-14T22:13:20.000Z"


def test_a_busy_worker_refuses_a_second_prompt(clock: Clock) -> None:
    slots = opened(1, clock)
    slots.take("a")
    assert slots.view().state is WorkerState.BUSY
    with pytest.raises(AllSlotsBusy) as refused:
        slots.take("b")
    assert refused.value.details == {"slots_total": 1, "slots_busy": 1}


def test_an_active_id_is_refused_even_when_a_slot_is_free(clock: Clock) -> None:
    slots = opened(2, clock)
    slots.take("a")
    with pytest.raises(RequestConflict):
        slots.take("a")


def test_a_worker_with_a_free_slot_is_idle_but_not_since_any_time(clock: Clock) -> None:
    slots = opened(2, clock)
    slots.take("a")
    view = slots.view()
    assert (view.state, view.slots_available, view.active_requests, view.idle_since) == ("idle", 1, 1, None)


def test_idle_since_moves_forward_when_the_last_request_ends(clock: Clock) -> None:
    slots = opened(2, clock)
    first, second = slots.take("a"), slots.take("b")
    clock.time += 5
    first.release()
    assert slots.view().idle_since is None
    clock.time += 5
    second.release()
    assert slots.view().idle_since == "2023-11-14T22:13:30.000Z"
    assert slots.view().slots_available == 2


def test_giving_a_slot_back_twice_frees_it_once(clock: Clock) -> None:
    slots = opened(2, clock)
    first = slots.take("a")
    first.release()
    slots.take("a")
    first.release()
    assert slots.busy == 1


def test_a_draining_worker_keeps_active_requests_and_refuses_new_ones(clock: Clock) -> None:
    slots = opened(1, clock)
    slot = slots.take("a")
    slots.drain()
    with pytest.raises(WorkerNotReady):
        slots.take("b")
    assert (slots.state, slots.busy) == (WorkerState.DRAINING, 1)
    slot.release()
    view = slots.view()
    assert (view.state, view.slots_available, view.idle_since) == ("draining", 0, None)
    assert slots.wait_empty(0)


def test_a_worker_that_finishes_loading_while_draining_stays_draining(clock: Clock) -> None:
    slots = Slots(1, now=clock)
    slots.drain()
    slots.open()
    slots.fail()
    assert slots.state is WorkerState.DRAINING


def test_every_move_is_told_once(clock: Clock) -> None:
    moves: list[tuple[str, str]] = []
    slots = Slots(1, now=clock, on_move=lambda old, new: moves.append((old, new)))
    slots.open()
    slots.take("a").release()
    slots.drain()
    slots.drain()
    assert moves == [("loading", "idle"), ("idle", "busy"), ("busy", "idle"), ("idle", "draining")]
