"""The fleet of a soak: a real queen, its local hive, nodes behind a real sshd, and how to look at them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from support.daemons import ROOT, Daemon, environment, wait_until
from support.processes import arguments, children, with_state_below, with_variable
from support.scripted import free_port, run_task
from support.sshd import SshNode, make_key

NODES = {"one": "127.0.0.21", "two": "127.0.0.22"}
TIMING = """
hive_connect_timeout_s = 5
hive_start_timeout_s = 60
hive_start_poll_ms = 100
ready_poll_interval_s = 0.2
loading_timeout_s = 60
busy_retry_delays_s = [0.2, 0.4, 0.8]
health_probe_interval_s = 2
idle_timeout_s = 20
lease_renew_s = 1
queen_drain_timeout_s = 5
"""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Footprint:
    """What a quiet daemon holds: resident memory and open descriptors of the process that serves."""

    pid: int
    rss_mib: float
    descriptors: int


class SoakFleet:
    """Starts everything; a context manager that ends it and leaves the folder for the checks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "queen"
        self.nodes: dict[str, SshNode] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SoakFleet:
        with ExitStack() as stack:
            key = make_key(self.folder / "keys" / "id_ed25519")
            for name, host in NODES.items():
                self.nodes[name] = stack.enter_context(self._node(name, host, key))
            config = _configure(self.home, "127.0.0.1", queen=f"local_hive_port = {free_port()}")
            options = ["--addr", "127.0.0.1:0", "--config", str(config)]
            self.queen = stack.enter_context(Daemon("queen-rbee", options, environment(self.home)))
            for name, node in self.nodes.items():
                self._register(name, node, key)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def end_queen(self) -> int:
        """End the queen, and with it all hives it owns; its exit code."""
        return self.queen.stop()

    def _node(self, name: str, host: str, key: Path) -> SshNode:
        home = self.folder / name / "home"
        config = _configure(home, host)
        variables = {
            "RBEE_HOME": str(home / ".rbee"),
            "RBEE_CONFIG": str(config),
            "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'cli'}",
        }
        return SshNode(self.folder / name, [key], environment=variables, host=host)

    def _register(self, name: str, node: SshNode, key: Path) -> None:
        body = {
            "node_name": name,
            "ssh_host": node.host,
            "ssh_port": node.port,
            "ssh_user": node.user,
            "ssh_key_path": str(key),
            "install_path": "/srv/nothing-installed-here",
            "hive_port": free_port(),
        }
        answer = requests.post(f"{self.queen.url}/v2/registry/beehives/add", json=body, timeout=60)
        assert answer.status_code == 200, answer.text

    def states(self) -> dict[str, Path]:
        """The state directory of every node's hive."""
        nodes = {name: node.home / ".rbee" for name, node in self.nodes.items()}
        return {"localhost": self.home / ".rbee", **nodes}

    def hive(self, node: str) -> psutil.Process | None:
        """The daemon that signals go to, if one runs on the node."""
        hives = [p for p in with_variable("RBEE_HOME", self.states()[node]) if _is(p, "hive")]
        below = {child.pid for hive in hives for child in children(hive.pid)}
        return next((hive for hive in hives if hive.pid not in below), None)

    def workers(self, node: str | None = None) -> list[psutil.Process]:
        """Worker daemons of one node or of all, without the processes below them."""
        states = [self.states()[node]] if node else list(self.states().values())
        found = [p for state in states for p in with_variable("RBEE_HOME", state) if _is(p, "worker")]
        below = {child.pid for worker in found for child in children(worker.pid)}
        return [worker for worker in found if worker.pid not in below]

    def listed(self) -> dict[str, Any]:
        """What the queen says runs."""
        answer = requests.get(f"{self.queen.url}/v2/workers/list", timeout=30)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def infer(self, model: str, node: str) -> dict[str, Any]:
        """The terminal event of a short task."""
        body = {"model": model, "node": node, "prompt": "x", "raw": True, "max_tokens": 2}
        return run_task(self.queen.url, body, timeout_s=120).terminal

    def quieten(self) -> None:
        """Wait for the end of all tasks, end all workers and wait until they are gone."""
        wait_until(lambda: self._open_tasks() == 0, 60, "no open task")

        def none_left() -> bool:
            listed = self.listed()
            for worker in listed["workers"]:
                body = {"worker_id": worker["worker_id"]}
                with suppress(requests.RequestException):
                    requests.post(f"{self.queen.url}/v2/workers/shutdown", json=body, timeout=30)
            return not listed["workers"] and not listed["unreachable"] and not self.workers()

        wait_until(none_left, 60, "no worker left")

    def _open_tasks(self) -> int:
        text = requests.get(f"{self.queen.url}/metrics", timeout=10).text
        (line,) = [line for line in text.splitlines() if line.startswith("rbee_queen_queue_depth ")]
        return int(float(line.split()[1]))

    def footprint(self, daemon: int) -> Footprint:
        """Of the process that serves below a daemon; connections that are about to close do not count."""
        serving = next(p for p in children(daemon) if arguments(p) == arguments(psutil.Process(daemon)))
        settled = _settled(lambda: serving.num_fds())
        return Footprint(serving.pid, serving.memory_info().rss / MIB, settled)

    def rows(self, state: Path, database: str, table: str) -> list[tuple[Any, ...]]:
        """All rows of a table in a state directory, after SQLite has found the file sound."""
        with closing(sqlite3.connect(f"file:{state / database}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608

    def left(self) -> list[psutil.Process]:
        """Processes of ours that still run."""
        return with_state_below(self.folder)


def _configure(home: Path, host: str, *, queen: str = "") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.toml"
    config.write_text(f"[queen]\n{queen}\n[pool]\nlisten_addr = '{host}:9200'\n[timing]\n{TIMING}")
    return config


def _is(process: psutil.Process, name: str) -> bool:
    words = arguments(process)[:3]
    return any(word == f"rbee.{name}" or word.endswith((f"rbee-{name}", f"{name}-rbee")) for word in words)


def _settled(count: Callable[[], int]) -> int:
    """The smallest count seen within two seconds."""
    seen = [count()]

    def is_enough() -> bool:
        seen.append(count())
        return len(seen) > 100

    wait_until(is_enough, 30)
    return min(seen)
