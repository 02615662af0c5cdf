"""What can be done to the software of nodes: the playbook, its name for people, the lines for its tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

OUTCOME_TASK = "Tell the outcome"
"""The last task of every playbook; a node that gets there is done."""


@dataclass(frozen=True)
class Operation:
    """One playbook.

    Attributes:
        name: of the command and of the playbook.
        noun: names it in messages.
        lines: the line shown when a task begins on a node, by the task's name.
        is_read_only: it changes nothing, so that others may work at the same time.
        changes_version: while it goes on, nodes of two versions serve side by side.
    """

    name: str
    noun: str
    lines: dict[str, str] = field(default_factory=dict)
    is_read_only: bool = False
    changes_version: bool = False


_COPYING = {
    "Clone the repository": "📦 Cloning repository on {node}",
    "Copy the packages": "📦 Copying packages to {node}",
    "Build the release": "🔨 Building rbee-hive and llm-worker-rbee",
}
_SERVICE = {
    "Wait for the open streams of the node": "🚧 Taking {node} out of service",
    "Get one token from the node through the queen": "🐤 Asking {node} for one token",
}
_UPGRADING = {
    **_COPYING,
    **_SERVICE,
    "Switch back to the release that was in use": "⏪ Putting {node} back on the release it had",
}

INSTALL = Operation("install", "Installation", _COPYING)
UPGRADE = Operation("upgrade", "Upgrade", _UPGRADING, changes_version=True)
ROLLBACK = Operation(
    "rollback",
    "Rollback",
    {"Choose the release to go back to": "⏪ Rolling back rbee on {node}", **_SERVICE},
    changes_version=True,
)
UNINSTALL = Operation("uninstall", "Uninstall", {"Remove the hive": "🗑 Removing rbee from {node}"})
CHECK = Operation("check", "Check", is_read_only=True)
