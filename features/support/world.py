"""All memory of one scenario."""

from __future__ import annotations

import os
import re
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.support.commands import CommandResult, RunningCommand
from features.support.fleet import Fleet
from features.support.holder import Holder
from features.support.observing import Answer
from features.support.peers import SilentPort
from features.support.processes import Member
from features.support.sandbox import API_KEY
from features.support.streams import LoadingPoll, StreamReader
from features.support.workers import Worker

_PLACEHOLDER = re.compile(r"\$(\w+)(?:\.(\w+))?")


@dataclass(slots=True)
class World:
    """What the steps of one scenario share; a fresh one for each."""

    fleet: Fleet
    results: list[CommandResult] = field(default_factory=list)
    """Finished commands, oldest first; Then steps read the last."""
    running: RunningCommand | None = None
    workers: dict[str, Worker] = field(default_factory=dict)
    """By the names the scenario gives them."""
    holders: dict[str, Holder] = field(default_factory=dict)
    """Requests that keep a worker busy, by the worker's name."""
    answers: list[Answer] = field(default_factory=list)
    """What services said to steps that asked them."""
    silent: SilentPort | None = None
    reader: StreamReader | None = None
    """The stream that a step reads beside the command."""
    poll: LoadingPoll | None = None
    """What a worker answered while it loaded."""
    family: list[Member] = field(default_factory=list)
    """Queen, hive and worker of an ephemeral run, as they were seen."""
    system: Path | None = None
    """Copies of the system folders, where a scenario installs for all users."""
    signalled_unix: float = 0.0
    """When the last signal was sent."""
    noted: dict[str, Any] = field(default_factory=dict)
    """Observations taken before an action, to compare with those after it."""

    @property
    def last(self) -> CommandResult:
        assert self.results, "no command has finished in this scenario"
        return self.results[-1]

    @property
    def command(self) -> RunningCommand:
        assert self.running is not None, "no command was started in this scenario"
        return self.running

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process, and remember when."""
        self.signalled_unix = time.time()
        os.kill(pid, number)

    def signal_group(self, pid: int, number: int) -> None:
        """Send a signal to a daemon and its serving process."""
        self.signalled_unix = time.time()
        os.killpg(pid, number)

    def words(self, line: str) -> list[str]:
        """A command line as the scenario writes it, cut like a shell would and with its values put in."""
        return [self.fill(word) for word in shlex.split(line)]

    def fill(self, text: str) -> str:
        """Replace ``$name`` and ``$name.field`` by what they mean in this scenario."""
        return _PLACEHOLDER.sub(lambda match: self._meaning(match[1], match[2]), text)

    def _meaning(self, name: str, attribute: str | None) -> str:
        if attribute is None:
            simple = {
                "key": self.fleet.key,
                "folder": self.fleet.folder,
                "api_key": API_KEY,
                "blep_config": self.fleet.blep.config_file,
                "blep_tmp": self.fleet.blep.temporary,
                "two_megabytes": "payload-marker " * 140_000,
            }
            return str(simple[name])
        if name in self.workers:
            return str(getattr(self.workers[name], attribute))
        return str(getattr(self.fleet.machines[name], attribute))
