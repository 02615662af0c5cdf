"""Which beginning of a prompt other requests may share, and whose computed state the engine keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence

Prefix = tuple[str, ...]
"""The engine's token strings from the beginning of a prompt."""

_SHORTEST = 16
"""A shorter beginning is read again sooner than it is looked up and copied."""
SHORTEST_REST = 2
"""Tokens after it: beside a rest of one the engine gives what longer ones have more as if generated."""
_REMEMBERED = 512
"""Beginnings that were seen and not kept."""


def shared_beginning(prompt: Sequence[int], turn_ends: Container[int]) -> int:
    """How many tokens of ``prompt`` another request may begin with as well; 0 for none.

    That is the end of a turn (what the system, the user or the model has said), but never of the last one.
    Among them it is the first, second, fourth, eighth … so that the requests of a growing conversation have
    theirs in common half of the time. It depends on nothing but the prompt: the engine rounds otherwise when
    it reads a prompt in two parts, and a greedy answer must not depend on what was asked before.

    Args:
        turn_ends: the tokens that end a turn.
    """
    ends = [index + 1 for index, token in enumerate(prompt) if token in turn_ends][:-1]
    if not ends:
        return 0
    end = ends[(1 << (len(ends).bit_length() - 1)) - 1]
    return end if _SHORTEST <= end <= len(prompt) - SHORTEST_REST else 0


class KeptPrefixes:
    """What the engine keeps; it can only ever keep more, until it begins anew.

    Args:
        budget_bytes: how much all of it may take.
        free_bytes: the memory that is free; a prefix is kept only while twice its size is.
    """

    def __init__(self, budget_bytes: int, free_bytes: Callable[[], int]) -> None:
        self._budget_bytes = budget_bytes
        self._free_bytes = free_bytes
        self._kept: set[Prefix] = set()
        self._kept_bytes = 0
        self._seen: OrderedDict[int, None] = OrderedDict()
        self.is_full = False
        """Whether something that comes again and again could not be kept."""

    def __contains__(self, prefix: object) -> bool:
        return prefix in self._kept

    def keep(self, prefix: Prefix, size_bytes: int) -> bool:
        """Whether the engine should keep ``prefix``; it does from now on.

        While half the budget is unused everything is worth a try, then only what comes a second time.
        """
        if prefix in self._kept:
            return True
        after = self._kept_bytes + size_bytes
        if after > self._budget_bytes / 2 and not self._was_seen(prefix):
            return False
        if after > self._budget_bytes or self._free_bytes() < 2 * size_bytes:
            self.is_full = size_bytes <= self._budget_bytes
            return False
        self._kept.add(prefix)
        self._kept_bytes = after
        return True

    def forget(self) -> None:
        """The engine has begun anew."""
        self._kept.clear()
        self._kept_bytes = 0
        self.is_full = False

    def _was_seen(self, prefix: Prefix) -> bool:
        key = hash(prefix)
        was_seen = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return was_seen
