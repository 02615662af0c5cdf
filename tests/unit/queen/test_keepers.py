"""How long a queen that lives for commands stays."""

import gevent
import pytest

from rbee.core.errors import ServiceUnavailable
from rbee.queen.keepers import OWNER, Keepers


def has_ended(keepers: Keepers) -> bool:
    waiting = gevent.spawn(keepers.wait_until_none)
    waiting.join(0.05)
    ended = bool(waiting.ready())
    waiting.kill()
    return ended


def test_it_ends_when_its_owner_leaves_alone() -> None:
    keepers = Keepers(1)
    assert not has_ended(keepers)
    assert keepers.leave(OWNER)
    assert has_ended(keepers)


def test_it_stays_for_those_that_have_joined_and_ends_with_the_last() -> None:
    keepers = Keepers(1)
    keepers.join("a")
    keepers.join("b")
    assert not keepers.leave(OWNER)
    assert not keepers.leave("a")
    assert not has_ended(keepers)
    assert keepers.leave("b")
    assert has_ended(keepers)


def test_to_leave_twice_or_unknown_changes_nothing() -> None:
    keepers = Keepers(1)
    keepers.join("a")
    for keeper in ("a", "a", "nobody"):
        assert not keepers.leave(keeper)
    assert keepers.leave(OWNER)


def test_nobody_joins_a_queen_that_is_ending() -> None:
    keepers = Keepers(1)
    keepers.leave(OWNER)
    with pytest.raises(ServiceUnavailable):
        keepers.join("late")
