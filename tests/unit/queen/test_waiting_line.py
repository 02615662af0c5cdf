"""Who comes first among tasks that wait for a slot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rbee.queen.placement import Wanted
from rbee.queen.waiting_line import Place, WaitingLine

MODEL = Wanted("file:/m.gguf")
wants = st.tuples(st.sampled_from([MODEL, Wanted("file:/other.gguf")]), st.sampled_from([None, "a", "b"]))


def test_places_are_numbered_in_order_of_arrival() -> None:
    line = WaitingLine()
    places = [line.join(MODEL, None) for _ in range(3)]
    assert [line.position(place) for place in places] == [(1, 3), (2, 3), (3, 3)]
    line.leave(places[0])
    assert [line.position(place) for place in places[1:]] == [(1, 2), (2, 2)]
    assert [place.called.is_set() for place in places] == [False, True, True]


def test_a_free_slot_is_for_the_first_who_can_use_it() -> None:
    line = WaitingLine()
    with line.serving("w", MODEL.model_ref):
        other = line.join(Wanted("file:/other.gguf"), None)
        first, second = line.join(MODEL, None), line.join(MODEL, None)
        assert line.is_served_by("w")
    assert not line.is_served_by("w")
    assert [place.called.is_set() for place in (other, first, second)] == [False, True, False]


def test_a_request_on_its_way_counts_as_served() -> None:
    line = WaitingLine()
    with line.asking("w") as asking:
        assert line.is_served_by("w")
        assert not line.is_served_by("other")
    assert not line.is_served_by("w")
    assert not asking.was_beside_others


def test_a_request_knows_whether_the_slots_may_have_been_held_by_other_tasks() -> None:
    line = WaitingLine()
    with line.serving("w", MODEL.model_ref):
        with line.asking("w") as during:
            pass
        until = line.asking("w")
        until.__enter__()
    until.__exit__()
    with line.asking("w") as since, line.asking("other"), line.asking("w") as within:
        pass
    with line.asking("w") as after:
        pass
    asked = [during, until, since, within, after]
    assert [each.was_beside_others for each in asked] == [True, True, True, True, False]


def test_tasks_that_need_different_nodes_do_not_hold_each_other_up() -> None:
    line = WaitingLine()
    on_a, on_b, anywhere = line.join(MODEL, "a"), line.join(MODEL, "b"), line.join(MODEL, None)
    assert line.position(on_a)[0] == line.position(on_b)[0] == 1
    assert line.position(anywhere) == (3, 3)
    assert line.has(MODEL, "a")
    assert not WaitingLine().has(MODEL, None)
    line.leave(on_a)
    line.leave(on_b)
    assert line.position(anywhere) == (1, 1)


def test_leaving_twice_does_no_harm() -> None:
    line = WaitingLine()
    place = line.join(MODEL, None)
    line.leave(place)
    line.leave(place)
    assert len(line) == 0


@given(st.lists(st.tuples(wants, st.integers(0, 5)), max_size=30))
def test_nobody_is_overtaken(steps: list[tuple[tuple[Wanted, str | None], int]]) -> None:
    """Whoever leaves, those that compete keep their order, and somebody is always first."""
    line, arrived = WaitingLine(), list[Place]()
    for (wanted, node), leaver in steps:
        arrived.append(line.join(wanted, node))
        if leaver < len(arrived) - 1:
            line.leave(arrived.pop(leaver))
        firsts = 0
        for index, place in enumerate(arrived):
            ahead = [p for p in arrived[:index] if p.competes_with(place.wanted, place.node_name)]
            assert line.position(place)[0] == len(ahead) + 1
            firsts += not ahead
        assert firsts >= 1
