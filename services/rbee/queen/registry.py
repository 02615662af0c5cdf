"""The nodes of the fleet: registered ones from the store, and the built-in node ``localhost``."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from rbee.core.errors import NodeExists, NodeNotFound, NodeProtected
from rbee.queen.cordons import Cordons
from rbee.queen.ports import NodeStore

LOCALHOST = "localhost"
LOCAL_ADDRESS = "127.0.0.1"
"""Where the hive of this machine listens."""
CONTACT_NOTED_EVERY_S = 5
"""A repeated good contact is written to the store no more often than this."""


class NodeStatus(StrEnum):
    """Outcome of the last contact with a node."""

    UNKNOWN = "unknown"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Contact:
    """How a contact with a node went, as it is stored with the node."""

    node_name: str
    status: NodeStatus
    connected_unix: int | None
    error: str | None

    def values(self) -> dict[str, Any]:
        """What changes in the node."""
        return {
            "status": self.status,
            "last_connected_unix": self.connected_unix,
            "last_error": self.error,
        }


@dataclass(frozen=True)
class Node:
    """One node as registered, with the outcome of its last contact."""

    node_name: str
    ssh_host: str
    ssh_user: str
    install_path: str
    ssh_port: int = 22
    ssh_key_path: str | None = None
    git_repo_url: str | None = None
    git_branch: str = "main"
    hive_port: int = 9200
    last_connected_unix: int | None = None
    last_error: str | None = None
    status: NodeStatus = NodeStatus.UNKNOWN
    backends: list[str] | None = None
    devices: dict[str, int] | None = None
    builtin: bool = False

    def record(self) -> dict[str, Any]:
        """The node as the API shows it."""
        return asdict(self)


def builtin_node(hive_port: int) -> Node:
    """This machine as a node; it needs no login and is no row of the store."""
    return Node(
        node_name=LOCALHOST,
        ssh_host=LOCAL_ADDRESS,
        ssh_user=_user(),
        install_path=sys.prefix,
        hive_port=hive_port,
        builtin=True,
    )


class Nodes:
    """Looks nodes up and notes contacts.

    Args:
        open_store: opens the store on first need; nothing that concerns localhost alone opens it.
        any_registered: tells without opening it whether the store has nodes.
    """

    def __init__(
        self,
        open_store: Callable[[], NodeStore],
        local: Node,
        *,
        any_registered: Callable[[], bool] = lambda: True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._open_store = open_store
        self._any_registered = any_registered
        self._opened: NodeStore | None = None
        self._local = local
        self._now = now
        self.cordons = Cordons(lambda: self.store if any_registered() else None, lambda: self.store, now)

    @property
    def store(self) -> NodeStore:
        """The store, opened now if it was not."""
        if self._opened is None:
            self._opened = self._open_store()
        return self._opened

    def open(self) -> None:
        """Open the store now, which makes its file."""
        _ = self.store

    def find(self, name: str) -> Node:
        """The node of that name.

        Raises:
            NodeNotFound: it is not registered.
        """
        node = self._local if name == LOCALHOST else self.store.get(name)
        if node is None:
            raise NodeNotFound(name)
        return node

    def all(self) -> list[Node]:
        """Localhost, then the registered nodes in order of insertion."""
        if not self._any_registered():
            return [self._local]
        return [self._local, *self.store.all()]

    def add(self, node: Node) -> None:
        """Register a node.

        Raises:
            NodeExists: the name is taken.
        """
        self.refuse_taken(node.node_name)
        self.store.add(node)

    def refuse_taken(self, name: str) -> None:
        """Raise ``NodeExists`` when a node of that name is there."""
        if name == LOCALHOST or self.store.get(name) is not None:
            raise NodeExists(name)

    def replace(self, node: Node) -> None:
        """Store another record under a name that is registered.

        Raises:
            NodeNotFound: it has been removed meanwhile.
        """
        if not self.store.replace(node):
            raise NodeNotFound(node.node_name)

    def remove(self, name: str) -> None:
        """Forget a node.

        Raises:
            NodeProtected: it is the built-in one.
            NodeNotFound: it is not registered.
        """
        if name == LOCALHOST:
            raise NodeProtected(name)
        if not self.store.remove(name):
            raise NodeNotFound(name)
        self.cordons.lift(name)

    def move_local_hive(self, port: int) -> Node:
        """Localhost's hive listens on ``port`` from now on; returns the new record."""
        self._local = replace(self._local, hive_port=port)
        return self._local

    def note_reachable(self, node: Node, *, hive_is_new: bool = False) -> None:
        """Remember a good contact; cheap when the last one, with the same hive, is a few seconds old."""
        self.note([self.reached(node, hive_is_new=hive_is_new)])

    def note_unreachable(self, node: Node, error: str) -> None:
        """Remember a failed contact and why it failed."""
        self.note([self.missed(node, error)])

    def reached(self, node: Node, *, hive_is_new: bool = False) -> Contact | None:
        """A good contact, now; None when one with the same hive is a few seconds old."""
        now = int(self._now())
        known = self._local if node.builtin else node
        is_fresh = now - (known.last_connected_unix or 0) < CONTACT_NOTED_EVERY_S
        if known.status is NodeStatus.REACHABLE and is_fresh and not hive_is_new:
            return None
        return Contact(node.node_name, NodeStatus.REACHABLE, now, None)

    def answering(self, node: Node) -> Contact | None:
        """The host answers although no hive does; None where that is known."""
        if node.status is NodeStatus.REACHABLE:
            return None
        return Contact(node.node_name, NodeStatus.REACHABLE, node.last_connected_unix, None)

    def missed(self, node: Node, error: str) -> Contact:
        """A failed contact."""
        return Contact(node.node_name, NodeStatus.UNREACHABLE, node.last_connected_unix, error)

    def note(self, contacts: Iterable[Contact | None]) -> None:
        """Remember contacts, all of them in one write."""
        stored = []
        for contact in contacts:
            if contact is None:
                continue
            if contact.node_name == LOCALHOST:
                self._local = replace(self._local, **contact.values())
            else:
                stored.append(contact)
        if stored:
            self.store.note_contacts(stored)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
