"""One queen with shortened time constants for a module, and scripted peers on its local hive's port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.daemons import Daemon, environment
from support.scripted import ScriptedHive, free_port

TIMING = """
hive_connect_timeout_s = 0.5
hive_connect_delays_ms = [0, 50, 100]
hive_start_timeout_s = 10
hive_start_poll_ms = 50
ready_poll_interval_s = 0.2
ready_poll_timeout_s = 1
loading_timeout_s = 1
busy_retry_delays_s = [0.05, 0.1, 0.2]
token_stall_timeout_s = 1
cancel_ack_timeout_s = 0.5
lease_renew_s = 0.2
queen_drain_timeout_s = 1
"""


@dataclass(frozen=True)
class QueenUnderTest:
    daemon: Daemon
    home: Path
    hive_port: int

    @property
    def url(self) -> str:
        return self.daemon.url


def write_config(home: Path, hive_port: int, extra: str = "") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.toml"
    config.write_text(f"[queen]\nlocal_hive_port = {hive_port}\nmax_pending = 3\n[timing]\n{TIMING}\n{extra}")
    return config


def start_queen(home: Path, *args: str, env: dict[str, str] | None = None, extra: str = "") -> QueenUnderTest:
    port = free_port()
    config = write_config(home, port, extra)
    options = ["--addr", "127.0.0.1:0", "--config", str(config), *args]
    return QueenUnderTest(Daemon("queen-rbee", options, environment(home, env)), home, port)


@pytest.fixture(scope="module")
def queen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path_factory.mktemp("queen"))
    with running.daemon:
        yield running


@pytest.fixture
def hive(queen: QueenUnderTest, tmp_path: Path) -> Iterator[Callable[..., ScriptedHive]]:
    """Starts a scripted hive where the queen expects this machine's."""
    started: list[ScriptedHive] = []

    def start(**script: Any) -> ScriptedHive:
        started.append(ScriptedHive(tmp_path, port=queen.hive_port, **script))
        return started[-1]

    yield start
    for peer in started:
        peer.__exit__()
