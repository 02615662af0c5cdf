"""Beginnings that prompts share: where they end, and which of them are kept."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from rbee.worker.prefixes import KeptPrefixes, Prefix, shared_beginning

END = 2
TURN = [*[7] * 19, END]
"""A turn of twenty tokens with its end."""
QUESTION = [*[8] * 9, END, 9, 9]
"""The last turn, and what calls for an answer."""


def test_the_turn_of_the_system_is_shared() -> None:
    assert shared_beginning([*TURN, *QUESTION], {END}) == 20


def test_a_single_turn_shares_nothing() -> None:
    assert shared_beginning(QUESTION, {END}) == 0
    assert shared_beginning([7] * 200, {END}) == 0


def test_a_beginning_that_is_hardly_worth_it_is_left() -> None:
    assert shared_beginning([7, 7, END, *QUESTION], {END}) == 0


def test_the_requests_of_a_conversation_have_most_beginnings_in_common() -> None:
    ends = [shared_beginning([*TURN * turns, *QUESTION], {END}) // 20 for turns in range(1, 18)]
    assert ends == [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 16, 16]


@given(st.lists(st.integers(0, 5), max_size=200), st.lists(st.integers(0, 5), min_size=2, max_size=9))
def test_it_ends_with_a_turn_before_the_last_one(prompt: list[int], rest: list[int]) -> None:
    length = shared_beginning(prompt, {END})
    if length:
        assert prompt[length - 1] == END
        assert END in prompt[length:]
        assert 16 <= length <= len(prompt) - 2
    # What follows without the end of a turn changes nothing, but that there is enough after it.
    more = [token for token in rest if token != END]
    assert shared_beginning([*prompt, *more], {END}) in {length, shared_beginning([*prompt, 0, 0], {END})}


def prefix(name: str) -> Prefix:
    return (name,) * 20


def kept(budget: int, free: Callable[[], int] = lambda: 10**9) -> KeptPrefixes:
    return KeptPrefixes(budget, free)


def test_everything_is_kept_while_half_of_the_budget_is_unused() -> None:
    all_kept = kept(100)
    assert prefix("a") not in all_kept
    assert all_kept.keep(prefix("a"), 50)
    assert prefix("a") in all_kept
    assert not all_kept.is_full


def test_later_only_what_comes_again_is_kept() -> None:
    all_kept = kept(100)
    all_kept.keep(prefix("a"), 50)
    assert not all_kept.keep(prefix("b"), 40)
    assert not all_kept.is_full
    assert all_kept.keep(prefix("b"), 40)
    assert all_kept.keep(prefix("a"), 50)


def test_the_budget_is_never_exceeded() -> None:
    all_kept = kept(100)
    taken = [all_kept.keep(prefix(str(number)), 30) for number in range(9) for _ in (1, 2)]
    assert taken == [True, True, False, True, False, True] + [False] * 12
    assert all_kept.is_full


def test_what_does_not_fit_into_the_whole_budget_does_not_make_it_full() -> None:
    all_kept = kept(100)
    assert [all_kept.keep(prefix("a"), 101) for _ in range(3)] == [False] * 3
    assert not all_kept.is_full


def test_without_a_budget_nothing_is_kept() -> None:
    all_kept = kept(0)
    assert [all_kept.keep(prefix("a"), 1) for _ in range(3)] == [False] * 3
    assert not all_kept.is_full


def test_memory_that_others_need_is_not_taken() -> None:
    free = 199
    all_kept = kept(1000, lambda: free)
    assert not all_kept.keep(prefix("a"), 100)
    free = 200
    assert all_kept.keep(prefix("a"), 100)


def test_an_engine_that_begins_anew_has_room_again() -> None:
    all_kept = kept(100)
    for name in "abab":
        all_kept.keep(prefix(name), 60)
    assert all_kept.is_full
    all_kept.forget()
    assert prefix("a") not in all_kept
    assert not all_kept.is_full
    assert all_kept.keep(prefix("b"), 60)
