"""Nodes that get no new tasks for now, and the roll-out under way: what operators have set, since when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rbee.core.errors import NodeCordoned
from rbee.queen.ports import CordonStore

ROLLOUT_LASTS_S = 24 * 3600
"""A roll-out whose end was never told, because its operator's machine died, is over after this."""


@dataclass(frozen=True)
class Cordon:
    """No new task goes to the node, until it is uncordoned; those under way go on."""

    node_name: str
    reason: str
    since_unix: int


@dataclass(frozen=True)
class Rollout:
    """A fleet that is being moved to another version, node by node."""

    version: str
    operator: str
    since_unix: int

    def listed(self) -> dict[str, Any]:
        """As the API shows it."""
        return asdict(self)


class Cordons:
    """Cordons and the roll-out: kept in memory, written through, so that a restarted queen knows them.

    Args:
        open_store: the store, or None where there is none yet and so nothing is set.
        make_store: the same, made if need be.
    """

    def __init__(
        self,
        open_store: Callable[[], CordonStore | None],
        make_store: Callable[[], CordonStore],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._open_store = open_store
        self._make_store = make_store
        self._now = now
        self._cordons: dict[str, Cordon] | None = None
        self._rollout: Rollout | None = None

    def of(self, node_name: str) -> Cordon | None:
        """The cordon of a node, if it has one."""
        return self._known().get(node_name)

    def refuse(self, node_name: str) -> None:
        """Raise ``NodeCordoned`` where the node has one."""
        cordon = self.of(node_name)
        if cordon is not None:
            raise NodeCordoned(node_name, cordon.reason, cordon.since_unix)

    def set(self, node_name: str, reason: str) -> Cordon:
        """Cordon a node; one that is cordoned keeps its time and gets the new reason."""
        known = self._known().get(node_name)
        since = int(self._now()) if known is None else known.since_unix
        cordon = Cordon(node_name, reason, since)
        self._make_store().set_cordon(cordon)
        self._known()[node_name] = cordon
        return cordon

    def lift(self, node_name: str) -> bool:
        """Uncordon a node; whether it was cordoned."""
        if node_name not in self._known():
            return False
        self._make_store().lift_cordon(node_name)
        del self._known()[node_name]
        return True

    @property
    def rollout(self) -> Rollout | None:
        """The roll-out under way."""
        self._known()
        found = self._rollout
        if found is not None and self._now() - found.since_unix > ROLLOUT_LASTS_S:
            return None
        return found

    def begin_rollout(self, version: str, operator: str) -> Rollout:
        """Note that a roll-out to ``version`` begins, or goes on."""
        self._known()
        rollout = Rollout(version, operator, int(self._now()))
        self._make_store().set_rollout(rollout)
        self._rollout = rollout
        return rollout

    def end_rollout(self) -> bool:
        """Note its end; whether one was under way."""
        was = self.rollout is not None
        if self._rollout is not None:
            self._make_store().set_rollout(None)
            self._rollout = None
        return was

    def _known(self) -> dict[str, Cordon]:
        if self._cordons is None:
            store = self._open_store()
            self._cordons = {} if store is None else {c.node_name: c for c in store.cordons()}
            self._rollout = None if store is None else store.rollout()
        return self._cordons
