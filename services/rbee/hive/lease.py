"""Who owns this hive, and until when: one that a queen started ends when its queen stops renewing."""

from __future__ import annotations

import time
from collections.abc import Callable

from rbee.core.errors import LeaseHeld

OPERATOR = "operator"


class Lease:
    """The owner's lease.

    Args:
        owner: identity of the queen that started this hive, or None for the operator, who needs no lease.
        ttl_s: the first lease.
        clock: monotonic seconds.
    """

    def __init__(self, owner: str | None, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.owner = owner or OPERATOR
        self._clock = clock
        self._expires = None if self.owner == OPERATOR else clock() + ttl_s

    def renew(self, owner: str, ttl_s: float) -> float:
        """Extend the lease of ``owner``; the Unix time at which it now ends.

        Raises:
            LeaseHeld: the hive belongs to somebody else, or to the operator.
        """
        if self._expires is None or owner != self.owner:
            raise LeaseHeld(self.owner)
        self._expires = self._clock() + ttl_s
        return time.time() + ttl_s

    def left_s(self) -> float | None:
        """Seconds until the lease ends (negative afterwards); None when there is none to end."""
        return None if self._expires is None else self._expires - self._clock()
