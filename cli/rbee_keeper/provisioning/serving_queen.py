"""The queen that serves clients while nodes are changed: it is told of a roll-out's begin and end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rbee.core.errors import RbeeError
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.provisioning.fleet_lock import who

if TYPE_CHECKING:
    from rbee_keeper.queen_connection import QueenConnection
    from rbee_keeper.session import Session

_ROLLOUT = "/v2/rollout"


def serving_queen(session: Session) -> QueenConnection | None:
    """The queen that was there before this command; one started for it serves nobody."""
    queen = session.queen()
    return None if queen.is_own else queen


@contextmanager
def noted_rollout(session: Session, version: str, *, is_needed: bool) -> Iterator[None]:
    """The queen lets nodes of two versions serve side by side for the time of the block, however that ends.

    Raises:
        KeeperFailure, RbeeError: the queen did not take note; nothing has begun then.
    """
    queen = serving_queen(session) if is_needed else None
    if queen is None:
        yield
        return
    queen.post(_ROLLOUT, {"version": version, "operator": who()})
    try:
        yield
    finally:
        try:
            queen.delete(_ROLLOUT)
        except (KeeperFailure, RbeeError) as failure:
            session.terminal.note(f"The queen was not told that the roll-out is over: {failure}")
