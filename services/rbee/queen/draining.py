"""What still runs on a node, and waiting until nothing does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gevent

from rbee.core.errors import RbeeError
from rbee.core.lifecycle import WorkerState
from rbee.queen import survey
from rbee.queen.cordons import Cordons
from rbee.queen.fleet import Fleet
from rbee.queen.registry import Node
from rbee.queen.tasks import OpenTasks

_POLL_S = 0.2
_SERVING = (WorkerState.IDLE, WorkerState.BUSY)


@dataclass(frozen=True)
class NodeActivity:
    """A node's cordon and what runs there."""

    node: Node
    cordons: Cordons
    open_tasks: int
    """Of this queen."""
    busy_slots: int
    """Of all its workers, whoever asked them; 0 where no hive runs or answers."""

    @property
    def is_quiet(self) -> bool:
        return self.open_tasks == 0 and self.busy_slots == 0

    def listed(self) -> dict[str, Any]:
        """As the API shows it."""
        cordon = self.cordons.of(self.node.node_name)
        return {
            "node": self.node.node_name,
            "status": self.node.status,
            "cordoned": cordon is not None,
            "reason": None if cordon is None else cordon.reason,
            "since_unix": None if cordon is None else cordon.since_unix,
            "open_tasks": self.open_tasks,
            "busy_slots": self.busy_slots,
        }


def look_at(fleet: Fleet, tasks: OpenTasks, node: Node) -> NodeActivity:
    """What runs on the node at this moment, asked from its hive."""
    try:
        workers = survey.workers_of(fleet, node)
    except RbeeError:
        workers = []
    busy = sum(w.slots_total - w.slots_available for w in workers if w.state in _SERVING)
    name = node.node_name
    return NodeActivity(fleet.nodes.find(name), fleet.nodes.cordons, tasks.on_node(name), busy)


def wait_until_quiet(fleet: Fleet, tasks: OpenTasks, node: Node, timeout_s: float) -> NodeActivity:
    """Wait until nothing runs on the node, at most ``timeout_s``; what ran at the end."""
    deadline = time.monotonic() + timeout_s
    while True:
        # Tasks are counted here; the hive is asked only when none is left.
        if tasks.on_node(node.node_name) == 0 or time.monotonic() >= deadline:
            activity = look_at(fleet, tasks, node)
            if activity.is_quiet or time.monotonic() >= deadline:
                return activity
        gevent.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))
