"""A queen, its hive and one worker for measuring, with a state directory of their own."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".bench"
"""Models are kept here between runs, so that only the first one downloads and converts."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> list[str]:
    """The argv that runs one of our programs from this environment."""
    script = Path(sys.executable).parent / name
    modules = {"rbee-keeper": "rbee_keeper", "queen-rbee": "rbee.queen", "rbee-hive": "rbee.hive"}
    return [str(script)] if script.exists() else [sys.executable, "-m", modules[name]]


class Home:
    """A state directory and the environment that uses it; configuration is written as TOML text."""

    def __init__(self, name: str, config: str = "", environment: Mapping[str, str] | None = None) -> None:
        self._more = dict(environment or {})
        self.path = STATE / name
        self.path.mkdir(parents=True, exist_ok=True)
        self.config = self.path / "config.toml"
        self.hive_port = free_port()
        self.config.write_text(f"[queen]\nlocal_hive_port = {self.hive_port}\n" + config)

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RBEE_")}
        return {
            **kept,
            "RBEE_HOME": str(self.path / "state"),
            "RBEE_MODELS_DIR": str(STATE / "models"),
            "RBEE_CATALOG_DB": str(STATE / "models.db"),
            "RBEE_CONFIG": str(self.config),
            "RBEE_QUEEN_URL": f"http://127.0.0.1:{free_port()}",
            **self._more,
        }

    def forget(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Fleet:
    """A persistent queen; ``worker()`` gives the URL and key of a loaded worker behind it."""

    def __init__(
        self,
        config: str = "",
        *,
        name: str = "fleet",
        environment: Mapping[str, str] | None = None,
        has_key: bool = False,
    ) -> None:
        self.key = secrets.token_urlsafe(24) if has_key else ""
        given = {"RBEE_API_KEY": self.key} if has_key else {}
        self.home = Home(name, config, {**given, **(environment or {})})
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Fleet:
        log = self.home.path / "queen.out"
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*program("queen-rbee"), "--addr", "127.0.0.1:0"],
                env=self.home.environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while not (match := re.search(r"listening on (http://\S+)", log.read_text())):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the queen did not start: {log.read_text()}")
            time.sleep(0.02)
        self.url = match.group(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(90)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def task(self, body: dict[str, Any]) -> requests.Response:
        return requests.post(
            f"{self.url}/v2/tasks", json=body, headers=self.headers, stream=True, timeout=600
        )

    def warm_worker(self) -> tuple[str, str, str]:
        """Run one task, so that a worker is loaded; returns its URL, its id and its key."""
        started: dict[str, Any] = {}
        for line in self.task({"prompt": "Hi", "max_tokens": 1}).iter_lines():
            if line.startswith(b"data: {") and b'"worker_url"' in line:
                started = json.loads(line[6:])
            if b'"error"' in line:
                raise RuntimeError(line.decode())
        hive = f"http://127.0.0.1:{self.home.hive_port}"
        body = {"model_ref": started["model"], "worker_id": started["worker_id"]}
        answer = requests.post(f"{hive}/v1/workers/spawn", json=body, headers=self.headers, timeout=30).json()
        return answer["url"], answer["worker_id"], answer["api_key"]
