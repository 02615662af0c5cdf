"""The hives this queen owns: it renews their leases, and ends exactly them when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import LeaseHeld, RbeeError
from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.ports import HiveHealth, HiveLauncher, Peers
from rbee.queen.registry import Node

LauncherFor = Callable[[Node], HiveLauncher]


@dataclass(frozen=True)
class OwnedHive:
    """A hive this queen renews the lease of and ends."""

    node: Node
    pid: int


class OwnedHives:
    """At most one owned hive per node.

    Args:
        identity: this queen's; a hive that names another owner is not owned.
    """

    def __init__(self, identity: str, peers: Peers, launcher_for: LauncherFor, timing: Timing) -> None:
        self.identity = identity
        self._peers = peers
        self._launcher_for = launcher_for
        self._timing = timing
        self._log = get_logger("queen-rbee")
        self._owned: dict[str, OwnedHive] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def __contains__(self, node_name: str) -> bool:
        return node_name in self._owned

    def own(self, node: Node, pid: int) -> None:
        """This queen has started the process."""
        self._owned[node.node_name] = OwnedHive(node, pid)

    def note(self, node: Node, health: HiveHealth) -> None:
        """Learn from what a hive says of itself."""
        if health.owner != self.identity:
            self._owned.pop(node.node_name, None)
        elif health.pid is not None:
            self._owned[node.node_name] = OwnedHive(node, health.pid)

    def drop_if_failed(self, node: Node) -> None:
        """Forget a hive whose launcher says that it has ended."""
        owned = self._owned.get(node.node_name)
        if owned is not None and self._launcher_for(node).failure(node) is not None:
            self._disown(owned)

    def surrender(self) -> list[OwnedHive]:
        """Own nothing any more; returns what was owned."""
        owned = list(self._owned.values())
        self._owned.clear()
        return owned

    def keep_leases(self) -> None:
        """Renew all leases again and again."""
        while True:
            gevent.sleep(self._timing.lease_renew_s)
            gevent.joinall([gevent.spawn(self.renew, name) for name in list(self._owned)])

    def renew(self, node_name: str) -> None:
        """Renew one lease now; a hive that is lost is forgotten."""
        owned = self._owned.get(node_name)
        if owned is None:
            return
        try:
            self._peers.hive(owned.node).renew_lease(self.identity, self._timing.lease_ttl_s)
        except LeaseHeld as error:
            self._disown(owned)
            self._log.warning("lease_lost", message=error.message, node=node_name)
        except TransportFailure as failure:
            self._log.warning("lease_renewal_failed", message=failure.reason, node=node_name)
            if failure.kind == "refused":
                self._drop_if_gone(owned)
        except RbeeError as error:
            self._log.warning("lease_renewal_failed", message=error.message, node=node_name)

    def _drop_if_gone(self, owned: OwnedHive) -> None:
        node = owned.node
        try:
            is_gone = self._launcher_for(node).wait_gone(node, owned.pid, 0.0)
        except RbeeError as error:
            self._log.info("hive_lookup_failed", message=error.message, node=node.node_name)
            return
        if is_gone:
            self._disown(owned)
            self._log.warning("hive_gone", message="an owned hive has ended", node=node.node_name)

    def _disown(self, owned: OwnedHive) -> None:
        """Forget a hive, unless another one has taken its place while the node was asked."""
        if self._owned.get(owned.node.node_name) == owned:
            del self._owned[owned.node.node_name]
