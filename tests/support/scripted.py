"""Runs scripted peers for the queen, and talks to a queen as a client does."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from rbee.core.events import Event, EventReader
from support.daemons import environment, wait_until


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ScriptedHive:
    """A hive and a worker that behave as a script says; a context manager."""

    def __init__(self, home: Path, **script: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rbee.testing.scripted_hive", json.dumps(script)],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.search(r"listening on (\S+) worker (\S+)", line)
        if match is None:
            self.__exit__()
            raise AssertionError(f"the scripted hive said {line!r}")
        self.url, self.worker_url = match.groups()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def requests(self, path: str = "", method: str = "", peer: str = "") -> list[dict[str, Any]]:
        """What both servers received so far, in order; each argument narrows it."""
        return self._narrowed(self.url, path, method, peer)

    def worker_requests(self, path: str = "", method: str = "") -> list[dict[str, Any]]:
        """The same asked from the worker, which may have outlived its hive."""
        return self._narrowed(self.worker_url, path, method, "worker")

    def stop_hive(self) -> None:
        """Close the hive's port; the worker goes on."""
        requests.post(f"{self.worker_url}/_stop_hive", timeout=5)

    @staticmethod
    def _narrowed(url: str, path: str, method: str, peer: str) -> list[dict[str, Any]]:
        seen = requests.get(f"{url}/_requests", timeout=5).json()
        return [
            r for r in seen if path in r["path"] and method in ("", r["method"]) and peer in ("", r["peer"])
        ]

    def __enter__(self) -> ScriptedHive:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True)
class TaskAnswer:
    """A finished stream of ``POST /v2/tasks``."""

    status: int
    headers: dict[str, str]
    events: list[Event]

    def named(self, name: str) -> list[Any]:
        return [e.json() for e in self.events if e.name == name]

    def narrated(self, action: str) -> list[str]:
        return [n["human"] for n in self.named("narration") if n["action"] == action]

    @property
    def data(self) -> list[Any]:
        """Unnamed events, without the closing marker."""
        return [e.json() for e in self.events if not e.name and not e.is_done_marker]

    @property
    def terminal(self) -> dict[str, Any]:
        return self.data[-1]

    @property
    def error(self) -> dict[str, Any]:
        """The error the stream ended with; fails when it ended otherwise, or not by the book."""
        self.assert_well_formed()
        return self.terminal["error"]

    @property
    def text(self) -> str:
        return "".join(d["token"] for d in self.data if "token" in d)

    def assert_well_formed(self) -> None:
        assert self.events, "no event at all"
        assert self.events[-1].is_done_marker, self.events[-1]
        ends = [d for d in self.data if "done" in d or "error" in d]
        assert ends == [self.terminal], ends


def run_task(
    queen_url: str,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
    timeout_s: float = 30,
    path: str = "/v2/tasks",
) -> TaskAnswer:
    """Post a task, or what else is answered by a stream, and read that to the end."""
    with requests.post(
        f"{queen_url}{path}", json=body, headers=headers, stream=True, timeout=timeout_s
    ) as answer:
        reader = EventReader()
        events = [e for chunk in answer.iter_content(None) for e in reader.feed(chunk)]
        return TaskAnswer(answer.status_code, dict(answer.headers), events)


class OpenTask:
    """A task whose stream is being read; close it to be a client that has gone."""

    def __init__(self, queen_url: str, body: dict[str, Any]) -> None:
        self._answer = requests.post(f"{queen_url}/v2/tasks", json=body, stream=True, timeout=30)
        self.request_id = self._answer.headers["X-Request-Id"]
        self._reader = EventReader()
        self.events: list[Event] = []
        self._chunks = self._answer.iter_content(None)

    def read_until(self, marker: str) -> None:
        """Read on until an event's data contains ``marker``."""
        while not any(marker in event.data for event in self.events):
            chunk = next(self._chunks, None)
            assert chunk is not None, f"the stream ended before {marker!r}: {self.events}"
            self.events += self._reader.feed(chunk)

    def read_to_end(self) -> TaskAnswer:
        for chunk in self._chunks:
            self.events += self._reader.feed(chunk)
        return TaskAnswer(200, dict(self._answer.headers), self.events)

    def close(self) -> None:
        self._answer.close()


def wait_for_request(hive: ScriptedHive, path: str, method: str, timeout_s: float = 5) -> dict[str, Any]:
    """The first request of that kind, once it has arrived."""
    seen = wait_until(lambda: hive.requests(path, method), timeout_s, f"{method} {path}")
    return seen[0]
