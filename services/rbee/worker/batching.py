"""Which waiting requests the engine should serve in one batch: a pure calculation from their lengths.

The engine reads the prompts of a batch together only up to the shortest of them; what the longer ones have
more is fed one token a step, beside the answers of the others. A batch cannot be joined while it runs. So
grouping saves the fixed cost of a step, and costs a slow start for the long prompts; what is cheaper follows
from three costs, which differ between devices.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_EXPECTED_TOKENS = 256
"""An answer is expected to be as long as it may be, but no longer than this."""
_DIVIDED = 12
"""So many requests are worth two lanes.

Fewer are about as fast in one, which has all cores while it is alone, and leave the other to whoever comes.
"""


@dataclass(frozen=True)
class Costs:
    """What the engine's work costs, in units of one token of a prompt read."""

    step: float
    """Of one step, whatever the size of its batch."""
    member: float
    """Of each member of a batch in one step."""
    feeding: float
    """How much of it a member may cost before its first token, beyond reading what all have.

    The engine cannot be stopped meanwhile, and whoever waits sees nothing: about a second.
    """


CPU_COSTS = Costs(step=4.0, member=1.7, feeding=150.0)
"""Measured with CTranslate2 4.8 on the embedded model in int8, AVX2, one thread a lane: 6.4 ms for a token of
a prompt, 37 ms for a step of one, 111 ms for a step of eight."""
CUDA_COSTS = Costs(step=60.0, member=1.0, feeding=10_000.0)
"""An assumption: nothing was measured on CUDA, where a step is bound by reading the weights."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A request that waits for the engine."""

    prompt_tokens: int
    max_tokens: int
    kind: Hashable
    """Only requests of one kind can share a batch: the engine has one set of sampling parameters for it."""
    is_alone: bool = False
    """Whether it has to have a batch of its own."""
    prefix: Hashable = None
    """The beginning of the prompt, if others can have it: a batch of one prefix reads it at most once."""
    prefix_tokens: int = 0

    @property
    def expected_tokens(self) -> int:
        return min(self.max_tokens, _EXPECTED_TOKENS)


def next_batch(
    waiting: Sequence[Candidate], costs: Costs, lanes: int, kept: Container[Hashable] = ()
) -> list[Candidate]:
    """Those that should run now, the one that has waited longest among them.

    Args:
        waiting: at least one, in order of arrival.
        lanes: how many batches can begin now; the work is shared out among them.
        kept: the prefixes that the engine need not read.
    """
    oldest = waiting[0]
    if oldest.is_alone:
        return [oldest]
    alike = [each for each in waiting if each.kind == oldest.kind and not each.is_alone]
    pools = pools_of(alike, costs, kept)
    mine = next(pool for pool in pools if oldest in pool)
    # Those of other kinds need a lane as well, and so do those of another prefix.
    others = len({each.kind for each in waiting} - {oldest.kind}) + len(pools) - 1
    for group in share_out(partition(mine, costs), costs, max(1, lanes - others)):
        if oldest in group:
            return group
    raise AssertionError("a group was lost")


def pools_of(
    candidates: Sequence[Candidate], costs: Costs, kept: Container[Hashable]
) -> list[list[Candidate]]:
    """All together, or apart by their prefixes, if what is not read then is more than larger batches save."""
    by_prefix: dict[Hashable, list[Candidate]] = {}
    for each in candidates:
        by_prefix.setdefault(each.prefix, []).append(each)
    together, apart = list(candidates), list(by_prefix.values())
    saved = sum(
        pool[0].prefix_tokens * (len(pool) if prefix in kept else len(pool) - 1)
        for prefix, pool in by_prefix.items()
        if prefix is not None
    )
    if len(apart) == 1 or saved == 0:
        return [together]
    price = sum(batch_cost(group, costs) for pool in apart for group in partition(pool, costs))
    price_together = sum(batch_cost(group, costs) for group in partition(together, costs))
    return apart if price - saved < price_together else [together]


def partition(candidates: Sequence[Candidate], costs: Costs) -> list[list[Candidate]]:
    """The cheapest division into batches, each of prompts that lie next to each other in length."""
    ordered = sorted(candidates, key=lambda each: each.prompt_tokens)
    count = len(ordered)
    cheapest = [0.0] + [float("inf")] * count
    begins = [0] * (count + 1)
    for end in range(1, count + 1):
        for begin in range(end - 1, -1, -1):
            group = ordered[begin:end]
            if feeding_cost(group, costs) > costs.feeding:
                break
            price = cheapest[begin] + batch_cost(group, costs)
            if price < cheapest[end]:
                cheapest[end], begins[end] = price, begin
    cuts = [count]
    while cuts[-1] > 0:
        cuts.append(begins[cuts[-1]])
    return [ordered[begin:end] for begin, end in pairwise(reversed(cuts))]


def share_out(groups: list[list[Candidate]], costs: Costs, lanes: int) -> list[list[Candidate]]:
    """Divide the dearest groups further until no lane would stand idle, or too few would share one."""
    groups = list(groups)
    while len(groups) < lanes:
        dearest = max(groups, key=lambda group: batch_cost(group, costs) if len(group) >= _DIVIDED else 0.0)
        if len(dearest) < _DIVIDED:
            break
        middle = (len(dearest) + 1) // 2
        place = groups.index(dearest)
        groups[place : place + 1] = [dearest[:middle], dearest[middle:]]
    return groups


def feeding_cost(group: Sequence[Candidate], costs: Costs) -> float:
    """What it costs to feed the longest prompt of a batch from where the shortest ends."""
    lengths = [each.prompt_tokens for each in group]
    return (max(lengths) - min(lengths)) * (costs.step + costs.member * len(group))


def batch_cost(group: Sequence[Candidate], costs: Costs) -> float:
    """What it costs to read the prompts of a batch and to make its answers."""
    shortest = min(each.prompt_tokens for each in group)
    steps = [each.prompt_tokens - shortest + each.expected_tokens for each in group]
    return len(group) * shortest + costs.step * max(steps) + costs.member * sum(steps)
