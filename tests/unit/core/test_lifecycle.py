"""The table of worker states has no dead end but removal."""

from rbee.core.lifecycle import MOVES, WorkerState, may_move


def test_every_state_is_in_the_table_and_leads_to_draining() -> None:
    assert set(MOVES) == set(WorkerState)
    for state in WorkerState:
        assert state is WorkerState.DRAINING or may_move(state, WorkerState.DRAINING)


def test_nothing_leaves_draining() -> None:
    assert [s for s in WorkerState if may_move(WorkerState.DRAINING, s)] == [WorkerState.DRAINING]


def test_a_loading_worker_cannot_be_busy_before_it_was_idle() -> None:
    assert not may_move(WorkerState.LOADING, WorkerState.BUSY)
