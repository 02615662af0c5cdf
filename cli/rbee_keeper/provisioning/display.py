"""Turns the events of a playbook run into display lines, a live view of tasks, and reasons of failures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbee_keeper.provisioning.operations import OUTCOME_TASK, Operation
from rbee_keeper.terminal import Terminal, printable

_REASON_FIELDS = ("stderr", "module_stderr", "msg", "stdout")
_REASON_LINES = 25


@dataclass(frozen=True)
class TaskFailure:
    """The first task that failed on a node, and what it said."""

    node: str
    task: str
    reason: str


@dataclass
class RunDisplay:
    """Follows one run.

    Args:
        shows_changes: print what Ansible says about each change (``--diff``).
        is_check: nothing is really done (``--check``), so that no completion is claimed.
    """

    terminal: Terminal
    operation: Operation
    shows_changes: bool = False
    is_check: bool = False
    completed: list[str] = field(default_factory=list)
    failures: dict[str, TaskFailure] = field(default_factory=dict)
    stray: list[str] = field(default_factory=list)
    """What was said outside of any task: a broken playbook, a missing module."""
    _working: dict[str, tuple[str, float]] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Show what an event means."""
        data = event.get("data", {})
        node, task = str(data.get("host", "")), str(data.get("task", "")).rpartition(" : ")[2]
        kind = event.get("event")
        if kind == "runner_on_start":
            self._begin(node, task)
        elif kind == "runner_on_ok":
            self._end(node, task, event)
        elif kind == "runner_on_skipped":
            self._working.pop(node, None)
        elif kind in ("runner_on_failed", "runner_item_on_failed"):
            if not data.get("ignore_errors"):
                self._fail(node, task, reason_of(data.get("res")))
        elif kind == "runner_on_unreachable":
            self._fail(node, task, reason_of(data.get("res")))
        elif kind in ("verbose", "error", "warning") and event.get("stdout"):
            self.stray.append(str(event["stdout"]))
        self._show_tasks()

    def finish(self) -> None:
        """Take the live view away."""
        self._working.clear()
        if self.terminal.stderr_is_tty:
            self.terminal.clear_status()

    def _begin(self, node: str, task: str) -> None:
        self._working[node] = (task, time.monotonic())
        line = self.operation.lines.get(task)
        if line is not None:
            self.terminal.line(f"[queen-rbee] {line.format(node=node)}")

    def _end(self, node: str, task: str, event: Mapping[str, Any]) -> None:
        self._working.pop(node, None)
        if task == OUTCOME_TASK:
            self.completed.append(node)
            if not self.is_check:
                self.terminal.line(f"[queen-rbee] ✅ {self.operation.noun} complete on {node}!")
        elif self.shows_changes and event["data"].get("res", {}).get("changed"):
            for line in str(event.get("stdout", "")).strip().splitlines():
                self.terminal.line(printable(line.replace("\t", "    ")))

    def _fail(self, node: str, task: str, reason: str) -> None:
        self._working.pop(node, None)
        # Later failures are consequences, such as the end of the roll-out. The item of a loop has the reason.
        self.failures.setdefault(node, TaskFailure(node, task, reason))

    def _show_tasks(self) -> None:
        if not self.terminal.stderr_is_tty or not self._working:
            return
        now = time.monotonic()
        parts = [f"{node}: {task} ({now - since:.0f} s)" for node, (task, since) in self._working.items()]
        self.terminal.status(printable(" · ".join(parts)))


def reason_of(result: Any) -> str:
    """Why a task failed: the first of its outputs that says something, bounded."""
    if not isinstance(result, Mapping):
        return ""
    if result.get("censored"):
        return "the output is hidden because it may hold the fleet key"
    for name in _REASON_FIELDS:
        text = str(result.get(name) or "").strip()
        if text:
            return "\n".join(text.splitlines()[-_REASON_LINES:])
    return ""
