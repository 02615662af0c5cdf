"""The fleet of one scenario: the queen on blep, the machines, and the end of everything started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil
from features.support import ports, processes
from features.support.commands import CommandResult, RunningCommand, wait_until
from features.support.hub import LocalHub
from features.support.machines import DaemonProcess, Machine, Node
from features.support.observing import call
from features.support.packages import installer_variables
from features.support.recorder import Recorder
from features.support.sandbox import Sandbox, merged, program

from support.sshd import make_key


class Closable(Protocol):
    def close(self) -> None: ...


class Fleet:
    """Everything a scenario starts, and its orderly end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports: list[tuple[str, int]] = []
        self.variables_of_all: dict[str, str] = {}
        """In the environment of every program on every machine."""
        self.blep = Sandbox(folder, "blep", self.variables_of_all)
        self.key = make_key(self.blep.home / ".ssh" / "id_ed25519")
        self.machines: dict[str, Machine] = {"localhost": self._localhost()}
        self.queen_port = self.port()
        self.queen: DaemonProcess | None = None
        self.recorder: Recorder | None = None
        self.prefix: list[str] = []
        """Words in front of every keeper's command line: what changes the world it runs in."""
        self.variables: dict[str, str | None] = {**installer_variables()}
        """Laid over the environment of the keepers to come; None takes a variable out."""
        self.commands: list[RunningCommand] = []
        self.daemons: list[DaemonProcess] = []
        self.peers: list[Closable] = []
        self.hub: LocalHub | None = None

    def port(self, host: str = "127.0.0.1", count: int = 1) -> int:
        """A free port, checked to be free again at the end; or the first of several in a row."""
        first = ports.free_port(host, count)
        self._ports += [(host, port) for port in range(first, first + count)]
        return first

    def _localhost(self) -> Machine:
        hive_port, worker_port = self.port(), self.port(count=Machine.WORKER_PORTS)
        self.blep.configure("queen", local_hive_port=hive_port)
        return Machine("localhost", self.blep, "127.0.0.1", hive_port, worker_port)

    # The queen and the keeper on blep.

    @property
    def queen_url(self) -> str:
        """The queen as the keeper is told: the recorder in front of it once there is one."""
        return self.recorder.url if self.recorder else f"http://127.0.0.1:{self.queen_port}"

    @property
    def queen_log(self) -> Path:
        return self.blep.log_file("queen-rbee")

    def start_queen(self, **extra: str | None) -> DaemonProcess:
        """Start the persistent queen; what the keeper says to it is recorded."""
        argv = [*program("queen-rbee"), "--addr", f"127.0.0.1:{self.queen_port}"]
        self.queen = DaemonProcess("queen-rbee", argv, self.blep, extra)
        self.daemons.append(self.queen)
        if self.recorder is None:
            self.recorder = Recorder(("127.0.0.1", self.queen_port))
        return self.queen

    def keeper(self, *args: str) -> CommandResult:
        """Run ``rbee-keeper`` on blep to its end."""
        return self.start_keeper(*args).finish()

    def start_keeper(self, *args: str, stdout_file: Path | None = None) -> RunningCommand:
        environment = {**self.blep.environment, "RBEE_QUEEN_URL": self.queen_url}
        environment = merged(environment, self.variables)
        argv = [*self.prefix, *program("rbee-keeper"), *args]
        command = RunningCommand(argv, environment, self.blep.folder, stdout_file)
        self.commands.append(command)
        return command

    # Machines and their hives.

    def machine(self, name: str) -> Machine:
        """A machine that a Given step has named before."""
        assert name in self.machines, f"there is no machine {name} in this scenario"
        return self.machines[name]

    def node(self, name: str) -> Node:
        """Such a machine with an SSH server."""
        found = self.machine(name)
        assert isinstance(found, Node), f"{name} has no SSH server"
        return found

    def sandbox(self, name: str) -> Sandbox:
        """The sandbox of a machine, made now if need be; ``blep`` and ``localhost`` are one."""
        return self.blep if name == "blep" else self.provide(name).sandbox

    def provide(self, name: str) -> Machine:
        """The machine; a new one can run a hive, but has no SSH server."""
        if name not in self.machines:
            host = self._new_host()
            hive_port, worker_port = self.port(host), self.port(host, Machine.WORKER_PORTS)
            self.machines[name] = Machine(name, self._sandbox(name), host, hive_port, worker_port)
        return self.machines[name]

    def provide_node(self, name: str) -> Node:
        """The machine with a running SSH server."""
        if name not in self.machines:
            host = self._new_host()
            hive_port, worker_port = self.port(host), self.port(host, Machine.WORKER_PORTS)
            sandbox, ssh_port = self._sandbox(name), self.port(host)
            node = Node(name, sandbox, host, hive_port, worker_port, ssh_port, self.key)
            self.machines[name] = node
            node.ssh.start()
        return self.node(name)

    def _sandbox(self, name: str) -> Sandbox:
        return Sandbox(self.folder, name, self.variables_of_all)

    def _new_host(self) -> str:
        return f"127.0.0.{10 + len(self.machines)}"

    @property
    def nodes(self) -> list[Node]:
        return [machine for machine in self.machines.values() if isinstance(machine, Node)]

    def start_hive(self, name: str, **extra: str) -> Machine:
        """Start a hive by hand on a machine, with further variables in its environment."""
        machine = self.provide(name)
        self.daemons.append(machine.start_hive(extra))
        return machine

    def record_hive(self, name: str) -> Recorder:
        """Put a recorder in front of a machine's hive; before the machine is registered."""
        machine = self.machine(name)
        recorder = machine.record_hive()
        self._ports.append((machine.hive_host, machine.hive_port))
        self.peers.append(recorder)
        return recorder

    def start_hub(self) -> LocalHub:
        """The hub of the scenario; from now on every program of it knows where it is."""
        if self.hub is None:
            assert not self.nodes, "the hub has to be there before the machines that ask it"
            self.hub = LocalHub(self.folder / "hub")
            self.variables_of_all["HF_ENDPOINT"] = self.hub.url
            self.peers.append(self.hub)
        return self.hub

    def register(
        self, node: Node, host: str | None = None, hive_port: int | None = None, **fields: str
    ) -> None:
        """Add a node through the product, as ``setup add-node`` does.

        ``host`` and port replace the node's own; ``fields`` are more of its record.
        """
        assert self.queen is not None, "a queen is needed to register a machine"
        body = {
            "node_name": node.name,
            "ssh_host": host or node.host,
            "ssh_port": node.ssh.port,
            "ssh_user": node.user,
            "ssh_key_path": str(self.key),
            "install_path": node.install_path,
            "hive_port": hive_port or node.hive_port,
            **fields,
        }
        answer = call("POST", f"{self.queen.url}/v2/registry/beehives/add", body)
        assert answer.status == 200, answer.body
        node.logins_at_registration = len(node.ssh.logins)

    # The end.

    def processes(self) -> list[psutil.Process]:
        """Every live process of this scenario's programs."""
        states = [machine.sandbox.state for machine in self.machines.values()]
        return [process for state in states for process in processes.processes_of(state)]

    def end(self) -> list[str]:
        """End what was started; returns what was still there afterwards."""
        for process in self.processes():
            _quietly(process.resume)
        for command in self.commands:
            command.ask_to_end()
        for command in self.commands:
            command.await_end()
        for daemon in self.daemons:
            daemon.command.ask_to_end()
        for daemon in self.daemons:
            daemon.command.await_end()
        for peer in self.peers:
            peer.close()
        if self.recorder is not None:
            self.recorder.close()
        for node in self.nodes:
            node.ssh.stop()
        return self._leftovers()

    def _leftovers(self) -> list[str]:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.processes(), 5, "the end of all processes")
        alive = self.processes()
        left = [f"process {p.pid}: {' '.join(processes.arguments(p))}" for p in alive]
        for process in alive:
            _quietly(process.kill)
        psutil.wait_procs(alive, timeout=5)
        return left + [f"port {h}:{p} is bound" for h, p in self._ports if not ports.is_free(h, p)]


def _quietly(act: Callable[[], None]) -> None:
    try:
        act()
    except psutil.NoSuchProcess:
        return
