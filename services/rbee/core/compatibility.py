"""Which versions of rbee may work together: the wire changes with a minor version, never with a patch."""

from __future__ import annotations

import re

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def is_compatible(one: str, other: str, *, is_rolling: bool = False) -> bool:
    """Whether two programs of these versions may talk to each other.

    Equal major and minor versions always may. While a roll-out is under way (``is_rolling``) minor versions
    may differ by one, so that a fleet can be moved node by node. A version that is not ``N.N.N`` fits only
    itself.
    """
    if one == other:
        return True
    here, there = _VERSION.match(one), _VERSION.match(other)
    if here is None or there is None or here[1] != there[1]:
        return False
    apart = abs(int(here[2]) - int(there[2]))
    return apart == 0 or (is_rolling and apart == 1)
