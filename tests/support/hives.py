"""Real hives for tests: their configuration, calls to them, models for stand-ins, and what they leave."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

from support.daemons import Daemon, environment, wait_until
from support.processes import with_variable

FLEET_KEY = "fleet-key-0123456789abcdef"
SCRIPTED = f"{sys.executable} -m rbee.testing.scripted_worker"
QUICK = {
    "ready_poll_interval_s": 0.3,
    "worker_start_timeout_s": 8,
    "health_probe_interval_s": 60,
    "shutdown_ack_timeout_s": 1,
    "shutdown_kill_after_s": 2,
    "hive_shutdown_timeout_s": 6,
    "worker_drain_timeout_s": 4,
}
"""Time constants under which tests take seconds."""


def ctranslate2_folder(path: Path) -> str:
    """A folder that a hive takes for a CTranslate2 model, and its reference; only stand-ins can load it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.bin").write_bytes(b"\0" * 1000)
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        (path / name).write_text("{}")
    return f"file:{path}"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


class HiveNode:
    """A hive of its own: home, config, port range; a context manager that checks that nothing is left.

    Args:
        worker: flags of the scripted worker, or None for the real one.
        config: further sections of the config file.
    """

    def __init__(
        self,
        home: Path,
        *,
        worker: str | None = "",
        key: str | None = FLEET_KEY,
        owner: str | None = None,
        timing: Mapping[str, object] = {},
        config: Mapping[str, Mapping[str, object]] = {},
        args: tuple[str, ...] = (),
        env: Mapping[str, str] = {},
    ) -> None:
        self.home = home
        self.key = key
        sections: dict[str, dict[str, object]] = {name: dict(values) for name, values in config.items()}
        pool = sections.setdefault("pool", {})
        pool.setdefault("name", "testnode")
        # A range of its own: hives of other tests may run at the same time.
        first_port = 10_000 + 20 * random.randrange(1000)
        pool.setdefault("worker_port_min", first_port)
        pool.setdefault("worker_port_max", max(first_port, int(str(pool["worker_port_min"]))) + 19)
        if worker is not None:
            pool.setdefault("worker_command", f"{SCRIPTED} {worker}".strip())
        sections["timing"] = {**QUICK, **timing}
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
            for name, values in sections.items()
        )
        self.env = environment(home, env)
        self.config_file = home / "config.toml"
        self.config_file.write_text(text)
        self.env["RBEE_CONFIG"] = str(self.config_file)
        if key is not None:
            self.env["RBEE_API_KEY"] = key
        self._args = [*args, *(["--owner", owner] if owner else [])]
        self.session = requests.Session()
        self.session.trust_env = False
        self.daemon: Daemon | None = None

    def start(self, port: int = 0) -> HiveNode:
        self.daemon = Daemon("rbee-hive", ["--addr", f"127.0.0.1:{port}", *self._args], self.env)
        return self

    def __enter__(self) -> HiveNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.session.close()
        assert self.daemon is not None
        self.daemon.stop()
        left = self.processes()
        for process in left:
            process.kill()
        if kind is None:
            assert not left, f"left behind: {left}"
            assert not list((self.home / ".rbee" / "run").glob("*.key"))

    @property
    def running(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    @property
    def serving_pid(self) -> int:
        """The process that serves: the only child of the daemon's own that is no worker."""
        return psutil.Process(self.running.pid).children()[0].pid

    def processes(self) -> list[psutil.Process]:
        """Living processes that carry this hive's home in their environment."""
        return with_variable("RBEE_HOME", self.home / ".rbee")

    def call(
        self, method: str, path: str, body: object = None, *, key: str | None = "", **options: Any
    ) -> requests.Response:
        key = self.key if key == "" else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers.update(options.pop("headers", {}))
        options.setdefault("timeout", 30)
        return self.session.request(method, self.running.url + path, json=body, headers=headers, **options)

    def spawn(self, model_ref: str, **fields: object) -> dict[str, Any]:
        answer = self.call("POST", "/v1/workers/spawn", {"model_ref": model_ref, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def workers(self) -> list[dict[str, Any]]:
        answer = self.call("GET", "/v1/workers/list")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["workers"])

    def worker(self, worker_id: str) -> dict[str, Any] | None:
        return next((w for w in self.workers() if w["id"] == worker_id), None)

    def wait_state(self, worker_id: str, state: str, timeout_s: float = 20.0) -> dict[str, Any]:
        def seen() -> dict[str, Any] | None:
            record = self.worker(worker_id)
            return record if record is not None and record["state"] == state else None

        return wait_until(seen, timeout_s, f"{worker_id} {state}") or {}

    def wait_gone(self, worker_id: str, timeout_s: float = 20.0) -> None:
        wait_until(lambda: self.worker(worker_id) is None, timeout_s, f"{worker_id} gone")

    def idle_worker(self, model_ref: str) -> dict[str, Any]:
        """Spawn a worker and wait until it is idle; the answer to the spawn."""
        spawned = self.spawn(model_ref)
        self.wait_state(spawned["worker_id"], "idle")
        return spawned

    def events(self, path: str) -> list[tuple[str, Any]]:
        """A whole event stream as (name, data) pairs; the last data is the text ``[DONE]``."""
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.text
        found = []
        for block in answer.text.split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in lines:
                data = lines["data"]
                found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
        return found

    def log(self, event: str | None = None, **facts: object) -> list[dict[str, Any]]:
        """Lines of the hive's log, of one event and with these facts where given."""
        path = self.home / ".rbee" / "logs" / "rbee-hive.log"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            line
            for line in lines
            if (event is None or line["event"] == event)
            and all(line.get(name) == value for name, value in facts.items())
        ]

    def worker_requests(self, worker_id: str, method: str, path: str) -> list[dict[str, Any]]:
        """Requests that a worker has logged."""
        log = self.home / ".rbee" / "logs" / f"{worker_id}.log"
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [x for x in lines if x.get("method") == method and x.get("path") == path]

    def open_files(self) -> int:
        """Open file descriptors of the serving process."""
        return len(os.listdir(f"/proc/{self.serving_pid}/fd"))


def ask_worker(
    spawned: Mapping[str, Any], method: str, path: str, body: object = None, **options: Any
) -> requests.Response:
    """Call a worker with its own key."""
    headers = {"Authorization": f"Bearer {spawned['api_key']}"}
    timeout = options.pop("timeout", 30)
    url = spawned["url"] + path
    return requests.request(method, url, json=body, headers=headers, timeout=timeout, **options)
