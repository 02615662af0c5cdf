"""Starts queens whose time constants are short and whose local hive has a port of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from support.daemons import Daemon, environment
from support.scripted import free_port

TIMING = """
hive_connect_timeout_s = 1
hive_connect_delays_ms = [0, 50, 100]
hive_start_timeout_s = 10
hive_start_poll_ms = 50
ready_poll_interval_s = 0.2
ready_poll_timeout_s = 1
loading_timeout_s = 2
busy_retry_delays_s = [0.05, 0.1, 0.2]
token_stall_timeout_s = 2
cancel_ack_timeout_s = 0.5
lease_renew_s = 0.2
queen_drain_timeout_s = 1
ssh_connect_timeout_s = 2
ssh_delays_ms = [0, 50, 100]
"""


@dataclass(frozen=True)
class QueenUnderTest:
    """A running queen."""

    daemon: Daemon
    home: Path
    hive_port: int

    @property
    def url(self) -> str:
        return self.daemon.url

    @property
    def identity(self) -> str:
        return (self.home / ".rbee" / "queen.id").read_text().strip()

    @property
    def log(self) -> str:
        return (self.home / ".rbee" / "logs" / "queen-rbee.log").read_text()


def write_config(
    home: Path, hive_port: int, *, timing: str = TIMING, extra: str = "", max_pending: int = 3
) -> Path:
    """A config file for a queen and its local hive."""
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.toml"
    config.write_text(
        f"[queen]\nlocal_hive_port = {hive_port}\nmax_pending = {max_pending}\n{extra}\n[timing]\n{timing}\n"
    )
    return config


def start_queen(
    home: Path,
    *args: str,
    env: Mapping[str, str] | None = None,
    timing: str = TIMING,
    extra: str = "",
    hive_port: int | None = None,
    max_pending: int = 3,
) -> QueenUnderTest:
    """A queen on a free port; end it through ``daemon``."""
    port = hive_port or free_port()
    config = write_config(home, port, timing=timing, extra=extra, max_pending=max_pending)
    options = ["--addr", "127.0.0.1:0", "--config", str(config), *args]
    return QueenUnderTest(Daemon("queen-rbee", options, environment(home, env)), home, port)
