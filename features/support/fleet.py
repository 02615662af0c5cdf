"""The fleet of one scenario: the queen on blep, nodes behind real sshds, and the end of everything started."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from features.support import observing
from features.support.commands import CommandResult, RunningCommand, wait_until
from features.support.sandbox import Sandbox, free_port, merged, program

from support.sshd import SshNode, make_key


class DaemonProcess:
    """A daemon started by the scenario itself, as an operator would."""

    def __init__(self, name: str, args: list[str], sandbox: Sandbox, extra: Mapping[str, str | None]) -> None:
        self.name = name
        self.command = RunningCommand(
            [*program(name), *args], merged(sandbox.environment, extra), sandbox.folder
        )
        self.url = wait_until(self._announced, 30, f"{name} listening")

    def _announced(self) -> str | None:
        match = re.search(rf"{self.name} listening on (http://\S+)", self.command.stdout)
        if match is None and not self.command.is_running:
            raise AssertionError(f"{self.name} ended: {self.command.stdout}{self.command.stderr}")
        return match.group(1) if match else None

    @property
    def pid(self) -> int:
        return self.command.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


class Node:
    """A remote machine: a sandbox of its own behind a real sshd, and the port its hive will use."""

    def __init__(self, name: str, folder: Path, host: str, key: Path) -> None:
        self.name = name
        self.sandbox = Sandbox(folder, name)
        self.hive_port = free_port(host)
        self.install_path = "/srv/rbee-not-installed"
        self.key = key
        worker_port = free_port(host)
        first = min(worker_port, 65000)
        self.sandbox.configure(
            "pool", name=name, worker_port_min=first, worker_port_max=min(first + 50, 65535)
        )
        environment = {n: v for n, v in self.sandbox.environment.items() if n not in ("HOME", "PATH")}
        self.ssh = SshNode(self.sandbox.folder / "sshd", [key], environment=environment, host=host)

    @property
    def hive_url(self) -> str:
        return f"http://{self.ssh.host}:{self.hive_port}"

    @property
    def hive_log(self) -> Path:
        return self.sandbox.log_file("rbee-hive")

    @property
    def hive_pids(self) -> set[int]:
        return observing.pids_of(self.sandbox.state, "rbee-hive")

    @property
    def worker_pids(self) -> set[int]:
        return observing.pids_of(self.sandbox.state, "llm-worker-rbee")

    def refresh_environment(self) -> None:
        """Write the node's environment again after the scenario changed it; before the sshd starts."""
        environment = {n: v for n, v in self.sandbox.environment.items() if n not in ("HOME", "PATH")}
        self.ssh = SshNode(
            self.sandbox.folder / "sshd",
            [self.key],
            environment=environment,
            host=self.ssh.host,
            port=self.ssh.port,
        )


class Fleet:
    """Everything a scenario starts, and its orderly end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blep = Sandbox(folder, "blep")
        self.blep.configure("queen", local_hive_port=free_port())
        first = min(free_port(), 65000)
        self.blep.configure("pool", worker_port_min=first, worker_port_max=min(first + 50, 65535))
        self.key = make_key(self.blep.home / ".ssh" / "id_ed25519")
        self.queen_port = free_port()
        self.queen: DaemonProcess | None = None
        self.nodes: dict[str, Node] = {}
        self.daemons: list[DaemonProcess] = []
        self.running: list[RunningCommand] = []

    @property
    def queen_url(self) -> str:
        return f"http://127.0.0.1:{self.queen_port}"

    @property
    def queen_log(self) -> Path:
        return self.blep.log_file("queen-rbee")

    def start_queen(self, **extra: str | None) -> DaemonProcess:
        """Start the persistent queen of the scenario on its port."""
        self.queen = self.start_daemon(
            "queen-rbee", ["--addr", f"127.0.0.1:{self.queen_port}"], self.blep, **extra
        )
        return self.queen

    def start_daemon(
        self, name: str, args: list[str], sandbox: Sandbox, **extra: str | None
    ) -> DaemonProcess:
        daemon = DaemonProcess(name, args, sandbox, extra)
        self.daemons.append(daemon)
        return daemon

    def add_node(self, name: str) -> Node:
        """A node with a running sshd on a loopback address of its own; not registered yet."""
        node = Node(name, self.folder, f"127.0.0.{11 + len(self.nodes)}", self.key)
        self.nodes[name] = node
        node.ssh.start()
        return node

    def keeper(self, *args: str, timeout_s: float = 120.0, **extra: str | None) -> CommandResult:
        """Run ``rbee-keeper`` on blep to its end."""
        return self.start_keeper(*args, **extra).finish(timeout_s)

    def start_keeper(self, *args: str, **extra: str | None) -> RunningCommand:
        environment = merged({**self.blep.environment, "RBEE_QUEEN_URL": self.queen_url}, extra)
        command = RunningCommand([*program("rbee-keeper"), *args], environment, self.blep.folder)
        self.running.append(command)
        return command

    def register(self, node: Node) -> CommandResult:
        """Add a node through the product."""
        result = self.keeper(
            "setup", "add-node", "--name", node.name, "--ssh-host", node.ssh.host,
            "--ssh-port", str(node.ssh.port), "--ssh-user", node.ssh.user, "--ssh-key", str(node.key),
            "--install-path", node.install_path, "--hive-port", str(node.hive_port),
        )  # fmt: skip
        assert result.exit_code == 0, result.stdout + result.stderr
        return result

    def start_hive(self, node: Node | None = None, *args: str, **extra: str | None) -> DaemonProcess:
        """Start a hive by hand, as its operator would, on a node or (None) on blep."""
        sandbox = node.sandbox if node else self.blep
        host = node.ssh.host if node else "127.0.0.1"
        port = node.hive_port if node else int(self.blep.settings["queen"]["local_hive_port"])
        address = ["--addr", f"{host}:{port}", "--worker-host", host]
        return self.start_daemon("rbee-hive", [*address, *args], sandbox, **extra)

    def end(self) -> list[str]:
        """End what was started, the queen first; returns what was still alive afterwards."""
        for command in self.running:
            command.end()
        for daemon in [d for d in self.daemons if d.name == "queen-rbee"] + self.daemons:
            _continue(daemon.pid)
            daemon.command.end()
        for node in self.nodes.values():
            node.ssh.stop()
        return self._end_leftovers()

    def _end_leftovers(self) -> list[str]:
        states = [self.blep.state, *(node.sandbox.state for node in self.nodes.values())]
        deadline = time.monotonic() + 5
        while True:
            alive = [process for state in states for process in observing.processes_of(state)]
            if not alive or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        described = [f"{p.pid} {' '.join(observing.arguments(p))}" for p in alive]
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return described


def _continue(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def worker_records(node_or_url: Node | str) -> list[dict[str, Any]]:
    """What a hive lists."""
    url = node_or_url if isinstance(node_or_url, str) else node_or_url.hive_url
    answer = observing.call("GET", f"{url}/v1/workers/list")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["workers"]
    return found
