"""A node store in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rbee.core.errors import NodeExists
from rbee.queen.cordons import Cordon, Rollout
from rbee.queen.registry import Contact, Node


class FakeNodes:
    """Keeps nodes in order of insertion."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._cordons: dict[str, Cordon] = {}
        self._rollout: Rollout | None = None
        self.contacts = 0
        """How often a contact was written."""

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def all(self) -> list[Node]:
        return list(self._nodes.values())

    def add(self, node: Node) -> None:
        if node.node_name in self._nodes:
            raise NodeExists(node.node_name)
        self._nodes[node.node_name] = node

    def replace(self, node: Node) -> bool:
        if node.node_name not in self._nodes:
            return False
        self._nodes[node.node_name] = node
        return True

    def remove(self, name: str) -> bool:
        return self._nodes.pop(name, None) is not None

    def note_contacts(self, contacts: Sequence[Contact]) -> None:
        for contact in contacts:
            if contact.node_name in self._nodes:
                self.contacts += 1
                known = self._nodes[contact.node_name]
                self._nodes[contact.node_name] = replace(known, **contact.values())

    def cordons(self) -> list[Cordon]:
        return list(self._cordons.values())

    def set_cordon(self, cordon: Cordon) -> None:
        self._cordons[cordon.node_name] = cordon

    def lift_cordon(self, node_name: str) -> None:
        self._cordons.pop(node_name, None)

    def rollout(self) -> Rollout | None:
        return self._rollout

    def set_rollout(self, rollout: Rollout | None) -> None:
        self._rollout = rollout

    def close(self) -> None:
        """Nothing to close."""
