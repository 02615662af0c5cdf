"""The process of this machine's hive: launched with the queen's identity, watched for its end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rbee.core.errors import HiveStartFailed

_END_WAIT_S = 10.0


@dataclass(frozen=True)
class HiveChild:
    """A launched hive: its process, where it will listen, and whose child it is."""

    process: subprocess.Popen[str]
    port: int
    parent_pid: int

    def end(self) -> None:
        """End it unless it has ended; does nothing in any process but the one that launched it."""
        if os.getpid() != self.parent_pid or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()


def launch_hive(
    host: str, preferred_port: int, identity: str, environ: Mapping[str, str], config: str | None
) -> HiveChild:
    """Start ``rbee-hive`` in a session of its own, so that a terminal's Ctrl+C reaches the keeper alone.

    Args:
        preferred_port: a free port is taken where this one is not free.
        identity: the queen's, the owner of the hive.
        environ: carries the fleet key; the arguments never do.
        config: the queen's ``--config``, if it was given.

    Raises:
        HiveStartFailed
    """
    port = _free_port(host, preferred_port)
    argv = [*hive_command(), "daemon", "--addr", f"{host}:{port}", "--owner", identity]
    if config is not None:
        argv += ["--config", config]
    try:
        process = subprocess.Popen(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise HiveStartFailed(host, f"{argv[0]}: {error.strerror}") from error
    return HiveChild(process, port, os.getpid())


def prestart_hive(
    host: str, port: int, home: Path, environ: Mapping[str, str], config: str | None
) -> HiveChild | None:
    """The hive, launched before the rest of the queen is even imported, so that both come up side by side.

    None where something listens on the port already, or where it cannot be started: the first task then
    starts it in the ordinary way, and tells why if it cannot.
    """
    from rbee.queen.identity import load_identity

    if _is_listening(host, port):
        return None
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return launch_hive(host, port, load_identity(home / "queen.id"), environ, config)
    except (OSError, HiveStartFailed):
        return None


def hive_command() -> list[str]:
    """The hive program of this installation."""
    script = Path(sys.executable).with_name("rbee-hive")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "rbee.hive"]


def _is_listening(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def _free_port(host: str, preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise HiveStartFailed(host, "no free port")
