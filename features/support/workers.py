"""A worker that a hive has spawned, as a scenario sees it: by its HTTP, its log and its process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from features.support import processes
from features.support.commands import wait_until
from features.support.observing import call, log_lines, requests_logged

if TYPE_CHECKING:
    from features.support.machines import Machine

START_S = 60.0
"""Longest wait for a daemon to listen or a worker to load; machines that run tests may be slow."""
Json = dict[str, Any]


class Worker:
    """A worker that a step had a hive spawn, under the name the scenario gives it."""

    def __init__(self, machine: Machine, spawned: Json) -> None:
        self.machine = machine
        self.id: str = spawned["worker_id"]
        self.url: str = spawned["url"]
        self.key: str = spawned["api_key"]
        self.port = int(self.url.rsplit(":", 1)[1])
        self.log = machine.sandbox.log_file(self.id)
        self.pid = 0

    @property
    def key_file(self) -> Path:
        """The file by which its hive hands it the key."""
        return self.machine.sandbox.state / "run" / f"{self.id}.key"

    @property
    def process(self) -> psutil.Process | None:
        """Its process, once it runs; the worker's own, not that of one of its children."""
        found = [p for p in self.machine.worker_processes if self.id in processes.arguments(p)]
        return found[0] if found else None

    @property
    def record(self) -> Json | None:
        """What the hive lists for it now."""
        return next((record for record in self.machine.listed() if record["id"] == self.id), None)

    def await_state(self, state: str) -> Json:
        """Wait until the hive lists it in this state; remembers its pid and gives the record."""

        def listed() -> Json | None:
            record = self.record
            assert record is not None, f"{self.id} has ended; see {self.log.name}"
            self.pid = record["pid"] or 0
            return record if record["state"] == state and self.pid else None

        found = wait_until(listed, START_S, f"worker {self.id} {state}")
        assert found is not None
        return found

    def await_http(self) -> None:
        """Wait until the worker answers."""

        def answers() -> bool:
            try:
                return self.ready()["state"] is not None
            except OSError:
                return False

        wait_until(answers, START_S, f"worker {self.id} answering")

    def ready(self) -> Json:
        """What the worker says at ``/v1/ready`` now."""
        answer = call("GET", f"{self.url}/v1/ready", key=self.key)
        assert answer.status == 200, answer.body
        found: Json = answer.json()
        return found

    def health(self) -> Json:
        """What the worker says at ``/v1/health`` now."""
        answer = call("GET", f"{self.url}/v1/health", key=self.key)
        assert answer.status == 200, answer.body
        found: Json = answer.json()
        return found

    def requests(self, request: str) -> list[Json]:
        """The log lines of the requests ``"METHOD /path"`` it has answered."""
        return requests_logged(self.log, request)

    def state_changes(self, change: str) -> list[Json]:
        """The log lines of a change such as ``loading to idle``."""
        return log_lines(self.log, "state", message=change)

    def metric(self, name: str) -> float:
        """The value of one of its metrics that has no labels."""
        text = call("GET", f"{self.url}/metrics", key=self.key).body.decode()
        (found,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(found)

    @property
    def exit_line(self) -> Json | None:
        """What its hive logged about its end."""
        ended = log_lines(self.machine.hive_log, worker_id=self.id)
        return next((line for line in ended if line["event"] in ("worker_ended", "worker_crashed")), None)

    @property
    def is_alive(self) -> bool:
        return processes.is_alive(self.pid)
