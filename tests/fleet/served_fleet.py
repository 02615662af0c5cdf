"""Three hosts in the service of a queen, the keeper that changes them, and clients that count tokens."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from fleet.hosts import CACHE, Lab
from rbee.core.events import EventReader
from rbee_keeper.provisioning.fleet_lock import LOCK_FILE
from support.daemons import Daemon, environment
from support.keeper import COMMAND, Outcome
from support.tiny_ct2 import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
KEY = "fleet-test-key-0123456789"
MODEL = "file:/srv/tiny"
_PAUSE_S = 0.8
"""Of a client between two streams: hosts, queen and playbook share a few cores with them."""
CONFIG = """
[queen]
max_pending = 50
[paths]
cache_dir = "{cache}"
[timing]
busy_retry_delays_s = [0.05, 0.1, 0.2]
hive_start_poll_ms = 100
ready_poll_interval_s = 0.1
"""


class ServedFleet:
    """A queen on the control machine with the hosts of a lab as its nodes; a context manager."""

    def __init__(self, folder: Path, lab: Lab, dist: Path) -> None:
        self.home, self.lab = folder, lab
        folder.mkdir(parents=True)
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(cache=CACHE / "control" / "cache"))
        links = f"{os.environ.get('PIP_FIND_LINKS', '')} {dist}".strip()
        self.environ = environment(
            folder, {"RBEE_API_KEY": KEY, "RBEE_CONFIG": str(self.config), "PIP_FIND_LINKS": links}
        )

    def __enter__(self) -> ServedFleet:
        self.queen = Daemon("queen-rbee", ["--addr", "127.0.0.1:0"], self.environ)
        return self

    def __exit__(self, *_: object) -> None:
        self.queen.stop()

    def argv(self, *args: str) -> list[str]:
        return [*COMMAND, "--queen-url", self.queen.url, *args]

    def keeper(self, *args: str) -> Outcome:
        done = subprocess.run(
            self.argv(*args),
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def playbook(self, name: str, *args: str) -> Outcome:
        """A playbook on the registered nodes, without the keeper."""
        programs = Path(sys.executable).parent
        done = subprocess.run(
            [programs / "ansible-playbook", "-i", "../inventory/registry.py", f"{name}.yml", *args],
            env={
                **self.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "RBEE_QUEEN_URL": self.queen.url,
                "ANSIBLE_NOCOLOR": "1",
            },
            cwd=ROOT / "playbooks",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def is_drained(self, host: str) -> bool:
        """Whether a node gets no new tasks and has none under way."""
        node = self.call("GET", f"/v2/nodes/{host}")
        return bool(node["cordoned"]) and node["open_tasks"] == 0

    @contextmanager
    def running_keeper(self, *args: str) -> Iterator[subprocess.Popen[bytes]]:
        """A keeper at work; killed at the end of the block unless it has ended."""
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            self.argv(*args), env=self.environ, cwd=self.home, stdin=quiet, stdout=quiet, stderr=quiet
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)

    def is_being_changed(self) -> bool:
        """Whether somebody still holds the fleet lock, as a playbook does until its end."""
        with (self.home / ".rbee" / "run" / LOCK_FILE).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = requests.request(
            method, self.queen.url + path, json=body or None, headers=bearer(), timeout=60
        )
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def register(self) -> None:
        """Make the hosts nodes, put the model on each, and keep tasks from the control machine's own hive."""
        tiny = write_tiny_model(self.home / "tiny", context_length=4096)
        for host in self.lab.hosts:
            added = self.keeper(
                *("setup", "add-node", "--name", host, "--ssh-host", self.lab.address(host)),
                *("--ssh-user", "root", "--ssh-key", str(self.lab.folder / "id")),
                *("--install-path", "/opt/rbee"),
            )
            assert added.code == 0, added.stdout + added.stderr
            served = self.lab.folder / "h" / host / "rootfs" / "srv" / "tiny"
            shutil.copytree(tiny, served)
            for path in [served, *served.iterdir()]:
                path.chmod(0o755 if path.is_dir() else 0o644)
        self.call("POST", "/v2/nodes/localhost/cordon", reason="only looks on")

    def load_models(self) -> None:
        """Each node gets the model into its catalog."""
        for host in self.lab.hosts:
            body = {"node": host, "model": MODEL}
            url = f"{self.queen.url}/v2/models/pull"
            text = requests.post(url, json=body, headers=bearer(), timeout=120).text
            assert '"done":true' in text.replace(" ", ""), text

    def versions(self) -> dict[str, str]:
        """The release in use on each host."""
        return {host: self.version(host) for host in self.lab.hosts}

    def version(self, host: str) -> str:
        return self.lab.run(host, "readlink", "/opt/rbee/current").strip().removeprefix("releases/")

    def hive_pids(self) -> dict[str, int]:
        found = {}
        for host in self.lab.hosts:
            answer = requests.get(f"http://{self.lab.address(host)}:9200/v1/health", timeout=10)
            found[host] = int(answer.json()["pid"])
        return found

    def cordoned(self) -> list[str]:
        nodes = self.call("GET", "/v2/nodes")["nodes"]
        return [node["node"] for node in nodes if node["cordoned"] and node["node"] != "localhost"]

    def times_out_of_service(self) -> dict[str, float]:
        """Seconds from the last cordon to its end, by node, from the queen's log."""
        log = self.home / ".rbee" / "logs" / "queen-rbee.log"
        began: dict[str, datetime] = {}
        took: dict[str, float] = {}
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if entry.get("event") == "node_draining":
                began[entry["node"]] = datetime.fromisoformat(entry["timestamp"])
            elif entry.get("event") == "node_uncordoned":
                at = datetime.fromisoformat(entry["timestamp"])
                took[entry["node"]] = round((at - began[entry["node"]]).total_seconds(), 1)
        return took


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


@dataclass
class Count:
    """What clients have seen."""

    streams: int = 0
    tokens: int = 0
    nodes: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)


class Clients:
    """Clients that ask for one stream after the other, none of them for a node."""

    def __init__(self, url: str, count: int) -> None:
        self.count = Count()
        self._url = url
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._texts: dict[int, str] = {}
        self._threads = [threading.Thread(target=self._work, args=(i,)) for i in range(count)]

    def _work(self, number: int) -> None:
        lengths = [40, 1000, 250]
        turn = number
        while not self._is_over.wait(_PAUSE_S):
            length = lengths[turn % len(lengths)]
            turn += 1
            try:
                node, tokens, problem = self._stream(length)
            except (requests.RequestException, ValueError, KeyError) as error:
                node, tokens, problem = "", 0, f"{type(error).__name__}: {error}"
            with self._lock:
                self.count.streams += 1
                self.count.tokens += tokens
                self.count.nodes[node] += 1
                if problem:
                    self.count.defects.append(problem)

    def _stream(self, length: int) -> tuple[str, int, str]:
        """Node, number of tokens, and what is wrong with the answer."""
        body = {"prompt": "abc", "raw": True, "model": MODEL, "max_tokens": length, "temperature": 0.0}
        answer = requests.post(
            f"{self._url}/v2/tasks",
            json={**body, "busy_retries": 10},
            headers=bearer(),
            stream=True,
            timeout=120,
        )
        with answer:
            if answer.status_code != 200:
                return "", 0, f"failed: {answer.status_code} {answer.text[:300]}"
            reader = EventReader()
            events = [event for chunk in answer.iter_content(None) for event in reader.feed(chunk)]
        node = next((str(e.json()["node"]) for e in events if e.name == "started"), "")
        data = [json.loads(e.data) for e in events if not e.name and not e.is_done_marker]
        tokens = [entry for entry in data if "token" in entry]
        errors = [entry["error"] for entry in data if "error" in entry]
        if errors:
            return node, len(tokens), f"failed after {len(tokens)} tokens on {node}: {errors}"
        if not events or not events[-1].is_done_marker or data[-1:] != [e for e in data if "done" in e]:
            return node, len(tokens), f"truncated after {len(tokens)} tokens on {node}"
        indices = [entry["index"] for entry in tokens]
        if indices != list(range(len(indices))) or data[-1]["total_tokens"] != len(indices):
            return node, len(tokens), f"tokens missing or twice on {node}: {indices}"
        return node, len(tokens), self._compare(length, "".join(entry["token"] for entry in tokens))

    def _compare(self, length: int, text: str) -> str:
        """The same request has the same answer wherever it is carried out."""
        with self._lock:
            known = self._texts.setdefault(length, text)
        return "" if text == known else f"another text: {text[:60]!r} instead of {known[:60]!r}"

    @contextmanager
    def at_work(self) -> Iterator[Count]:
        """They work for the time of the block and end with a whole stream each."""
        for thread in self._threads:
            thread.start()
        try:
            yield self.count
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join(180)


def report(title: str, count: Count, fleet: ServedFleet) -> None:
    """Figures for whoever reads the run."""
    out = fleet.times_out_of_service()
    print(
        f"{title}: {count.streams} streams, {count.tokens} tokens, {len(count.defects)} failed, "
        f"by node {dict(count.nodes)}, seconds out of service {out}",
        *sorted(set(count.defects))[:10],
        sep="\n  ",
        file=sys.stderr,
    )
