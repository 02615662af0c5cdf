"""Whose hive it is, and when it ends by itself."""

from __future__ import annotations

import time

import pytest

from rbee.core.errors import LeaseHeld
from rbee.hive.lease import Lease


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_hive_of_a_queen_begins_with_a_lease() -> None:
    clock = Clock()
    lease = Lease("queen-1", 60, clock)
    clock.now += 59
    assert lease.left_s() == pytest.approx(1)
    clock.now += 2
    assert lease.left_s() == pytest.approx(-1)


def test_the_owner_extends_its_lease_and_learns_until_when() -> None:
    clock = Clock()
    lease = Lease("queen-1", 60, clock)
    clock.now += 50
    expires = lease.renew("queen-1", 30)
    assert lease.left_s() == pytest.approx(30)
    assert expires == pytest.approx(time.time() + 30, abs=2)


def test_another_queen_cannot_take_the_lease() -> None:
    lease = Lease("queen-1", 60, Clock())
    with pytest.raises(LeaseHeld) as raised:
        lease.renew("queen-2", 60)
    assert raised.value.details == {"owner": "queen-1"}


@pytest.mark.parametrize("asking", ["queen-1", "operator"])
def test_a_hive_of_the_operator_has_no_lease_and_gives_none(asking: str) -> None:
    lease = Lease(None, 60, Clock())
    assert lease.owner == "operator"
    assert lease.left_s() is None
    with pytest.raises(LeaseHeld):
        lease.renew(asking, 60)
