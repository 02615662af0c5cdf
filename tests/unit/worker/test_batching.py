"""Which requests share a batch."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from rbee.worker.batching import (
    CPU_COSTS,
    CUDA_COSTS,
    Candidate,
    Costs,
    batch_cost,
    feeding_cost,
    next_batch,
    partition,
)

candidates = st.builds(
    Candidate,
    prompt_tokens=st.integers(1, 2000),
    max_tokens=st.integers(1, 500),
    kind=st.sampled_from(["greedy", "warm"]),
    is_alone=st.booleans(),
    prefix=st.sampled_from([None, "a", "b"]),
    prefix_tokens=st.integers(0, 900),
)
queues = st.lists(candidates, min_size=1, max_size=24)
some_costs = st.builds(Costs, step=st.floats(0.1, 100), member=st.floats(0.1, 10), feeding=st.floats(0, 1000))


def prompts(*lengths: int, max_tokens: int = 64) -> list[Candidate]:
    return [Candidate(length, max_tokens, "greedy") for length in lengths]


def lengths(batch: list[Candidate]) -> list[int]:
    return sorted(each.prompt_tokens for each in batch)


def test_equal_prompts_share_one_batch() -> None:
    waiting = prompts(*[40] * 16)
    assert len(next_batch(waiting, CPU_COSTS, 1)) == 16
    assert len(next_batch(waiting, CUDA_COSTS, 1)) == 16


def test_a_batch_is_shared_out_among_idle_lanes() -> None:
    waiting = prompts(*[40] * 16)
    assert len(next_batch(waiting, CPU_COSTS, 2)) == 8
    assert len(next_batch(prompts(*[40] * 12), CPU_COSTS, 2)) == 6
    assert len(next_batch(prompts(40), CPU_COSTS, 4)) == 1


def test_a_few_stay_together_and_leave_a_lane_to_others() -> None:
    assert len(next_batch(prompts(*[40] * 11), CPU_COSTS, 2)) == 11


def test_a_long_prompt_does_not_wait_for_the_answers_of_short_ones() -> None:
    waiting = prompts(38, 428, 41, 430, 35)
    assert lengths(next_batch(waiting, CPU_COSTS, 1)) == [35, 38, 41]
    assert lengths(next_batch(waiting[1:], CPU_COSTS, 1)) == [428, 430]


def test_the_longer_the_answers_the_more_a_common_batch_is_worth() -> None:
    """A shared step saves its fixed cost for every token of an answer."""
    assert lengths(next_batch(prompts(40, 55, max_tokens=8), CPU_COSTS, 1)) == [40]
    assert lengths(next_batch(prompts(40, 55, max_tokens=256), CPU_COSTS, 1)) == [40, 55]


def test_kinds_do_not_mix_and_each_gets_a_lane() -> None:
    waiting = [*prompts(*[40] * 12), Candidate(40, 64, "warm")]
    assert len(next_batch(waiting, CPU_COSTS, 2)) == 12
    assert len(next_batch(waiting, CPU_COSTS, 3)) == 6


def sharing(
    prefix: str | None, count: int, prefix_tokens: int = 300, max_tokens: int = 64
) -> list[Candidate]:
    return [
        Candidate(prefix_tokens + 20, max_tokens, "greedy", prefix=prefix, prefix_tokens=prefix_tokens)
        for _ in range(count)
    ]


def prefixes(batch: list[Candidate]) -> list[str]:
    return sorted(str(each.prefix) for each in batch)


def test_a_long_common_beginning_is_worth_a_batch_of_its_own() -> None:
    waiting = [*sharing("a", 3), *sharing("b", 3)]
    assert prefixes(next_batch(waiting, CPU_COSTS, 1)) == ["a"] * 3
    assert prefixes(next_batch(waiting[3:], CPU_COSTS, 1)) == ["b"] * 3


def test_different_beginnings_do_not_keep_requests_apart() -> None:
    waiting = [*sharing("a", 1), *sharing("b", 1), *sharing(None, 1)]
    assert prefixes(next_batch(waiting, CPU_COSTS, 1)) == ["None", "a", "b"]


def test_a_short_common_beginning_does_not_keep_requests_apart() -> None:
    waiting = [*sharing("a", 2, 20, 256), *sharing("b", 2, 20, 256)]
    assert prefixes(next_batch(waiting, CPU_COSTS, 1)) == ["a", "a", "b", "b"]


def test_a_beginning_that_the_engine_has_kept_saves_even_more() -> None:
    waiting = [*sharing("a", 1, 700), *sharing("b", 1, 700)]
    assert prefixes(next_batch(waiting, CPU_COSTS, 1)) == ["a", "b"]
    assert prefixes(next_batch(waiting, CPU_COSTS, 1, {"a"})) == ["a"]


def test_requests_of_another_beginning_get_a_lane_as_well() -> None:
    waiting = [*sharing("a", 12), *sharing("b", 12)]
    assert len(next_batch(waiting, CPU_COSTS, 2)) == 12
    assert len(next_batch(waiting, CPU_COSTS, 3)) == 6


@given(queues, some_costs, st.integers(1, 4))
def test_who_has_waited_longest_always_runs(waiting: list[Candidate], costs: Costs, lanes: int) -> None:
    batch = next_batch(waiting, costs, lanes)
    assert waiting[0] in batch
    assert len(set(batch)) == len(batch) <= len(waiting)
    assert {each.kind for each in batch} == {waiting[0].kind}
    assert len(batch) == 1 or not any(each.is_alone for each in batch)


@given(queues, some_costs, st.integers(1, 4))
def test_nobody_is_fed_token_by_token_for_long(waiting: list[Candidate], costs: Costs, lanes: int) -> None:
    assert feeding_cost(next_batch(waiting, costs, lanes), costs) <= costs.feeding


@given(queues, some_costs, st.integers(1, 4))
def test_everybody_is_served_once(waiting: list[Candidate], costs: Costs, lanes: int) -> None:
    left, served = list(waiting), []
    while left:
        batch = next_batch(left, costs, lanes)
        served += batch
        left = [each for each in left if each not in batch]
    assert sorted(map(id, served)) == sorted(map(id, waiting))


@given(
    st.lists(
        st.builds(Candidate, st.integers(1, 99), st.integers(1, 99), st.just("k")), min_size=1, max_size=7
    )
)
def test_no_other_division_is_cheaper(members: list[Candidate]) -> None:
    ordered = sorted(members, key=lambda each: each.prompt_tokens)
    found = sum(batch_cost(group, CPU_COSTS) for group in partition(members, CPU_COSTS))
    for count in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), count):
            bounds = [0, *cuts, len(ordered)]
            groups = [ordered[a:b] for a, b in pairwise(bounds)]
            if all(feeding_cost(group, CPU_COSTS) <= CPU_COSTS.feeding for group in groups):
                assert found <= sum(batch_cost(group, CPU_COSTS) for group in groups) + 1e-6
