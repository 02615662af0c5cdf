"""All memory of one scenario."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from features.support.commands import CommandResult, RunningCommand
from features.support.fleet import DaemonProcess, Fleet
from features.support.observing import Answer


@dataclass(slots=True)
class World:
    """What the steps of one scenario share; a fresh one for each."""

    fleet: Fleet
    result: CommandResult | None = None
    """The last finished command, which Then steps read."""
    results: list[CommandResult] = field(default_factory=list)
    running: RunningCommand | None = None
    answer: Answer | None = None
    answers: list[Answer] = field(default_factory=list)
    hive: DaemonProcess | None = None
    noted: dict[str, Any] = field(default_factory=dict)
    """Observations taken before an action, to compare with those after it."""

    def finished(self, result: CommandResult) -> None:
        self.result = result
        self.results.append(result)

    @property
    def last(self) -> CommandResult:
        assert self.result is not None, "no command has finished in this scenario"
        return self.result
