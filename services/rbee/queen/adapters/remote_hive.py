"""Hives on other machines: started through the transport by systemd or detached, and ended the same way."""

from __future__ import annotations

import json

import gevent

from rbee.core.errors import BadHiveResponse, HiveStartFailed, SshConnectionFailed
from rbee.queen.adapters import hive_scripts
from rbee.queen.adapters.hive_answers import read_capabilities
from rbee.queen.adapters.ssh_failures import SshReason, login_failed
from rbee.queen.ports import Capabilities, Completed, HiveProcess, NodeTransport
from rbee.queen.registry import Node

_COMMAND_TIMEOUT_S = 30.0
_NOT_FOUND = 127
_SIGNAL_NAMES = {15: "TERM", 9: "KILL"}


class RemoteHive:
    """Starts and signals hives through a transport.

    Args:
        identity: the queen's, the owner of the hives.
        program: the hive program on every node (``remote.binary_path``); None: the one under each node's
            install path, or else the one in the node's PATH.
    """

    def __init__(self, transport: NodeTransport, identity: str, program: str | None) -> None:
        self._transport = transport
        self._identity = identity
        self._program = program
        self._started: dict[str, tuple[str, str]] = {}

    def start(self, node: Node, port: int) -> HiveProcess:
        program, search = self._program_of(node)
        address = self._transport.address(node)
        options = ["--port", str(port), "--owner", self._identity, "--worker-host", address]
        self._started.pop(node.node_name, None)
        done = self._script(node, hive_scripts.START, program, search, *options)
        _refuse_failed(node, program, done)
        # A login may print a greeting of its own before.
        told = done.stdout.splitlines()[-1:] or [""]
        kind, *words = told[0].split() or [""]
        if kind not in ("process", "unit") or not words:
            raise HiveStartFailed(node.ssh_host, "its shell gave no pid")
        self._started[node.node_name] = kind, words[0]
        pid = int(words[-1]) if words[-1].isdigit() else 0
        return HiveProcess(port, pid if pid > 1 else None)

    def pause(self, node: Node, timeout_s: float) -> None:  # noqa: ARG002 (no news comes from there)
        gevent.sleep(timeout_s)

    def failure(self, node: Node) -> str | None:
        started = self._started.get(node.node_name)
        if started is None:
            return None
        try:
            done = self._script(node, hive_scripts.FAILURE, *started)
        except SshConnectionFailed as error:
            return error.message
        if done.exit_code == 0:
            return None
        return f"it ended: {_last_line(done).removeprefix('Error:').strip() or 'no output'}"

    def detect(self, node: Node) -> Capabilities:
        program, search = self._program_of(node)
        done = self._script(node, hive_scripts.RUN, program, search, "detect")
        _refuse_failed(node, program, done)
        try:
            return read_capabilities(json.loads(done.stdout))
        except (KeyError, TypeError, ValueError) as error:
            raise BadHiveResponse(node.ssh_host) from error

    def _program_of(self, node: Node) -> tuple[str, str]:
        """The hive program, and whether another one in PATH will do."""
        if self._program is not None:
            return self._program, "no"
        return f"{node.install_path}/current/bin/rbee-hive", "yes"

    def signal(self, node: Node, pid: int, number: int) -> None:
        self._script(node, hive_scripts.SIGNAL, str(pid), _SIGNAL_NAMES.get(number, str(number)))

    def wait_gone(self, node: Node, pid: int, timeout_s: float) -> bool:
        steps = max(0, int(timeout_s * 5))
        limit_s = timeout_s + _COMMAND_TIMEOUT_S
        done = self._script(node, hive_scripts.WAIT_GONE, str(pid), str(steps), timeout_s=limit_s)
        return done.exit_code == 0

    def _script(
        self, node: Node, script: str, *args: str, timeout_s: float = _COMMAND_TIMEOUT_S
    ) -> Completed:
        return self._transport.run(node, ["sh", "-c", script.strip(), "rbee", *args], timeout_s)


class TransportLogin:
    """Proves a login by a harmless command."""

    def __init__(self, transport: NodeTransport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s

    def check(self, node: Node) -> None:
        # A connection that is still open from an earlier login proves nothing about this key now.
        self._transport.forget(node)
        done = self._transport.run(node, ["echo", "connection test"], self._timeout_s)
        if done.exit_code == _NOT_FOUND:
            raise login_failed(node, SshReason.NOT_FOUND)
        if done.exit_code != 0 or done.stdout.strip() != "connection test":
            raise login_failed(node, SshReason.FAILED)


def _refuse_failed(node: Node, program: str, done: Completed) -> None:
    if done.exit_code == _NOT_FOUND:
        raise HiveStartFailed(node.ssh_host, f"{program}: {SshReason.NOT_FOUND.lower()}")
    if done.exit_code != 0:
        raise HiveStartFailed(node.ssh_host, _last_line(done) or f"exit status {done.exit_code}")


def _last_line(done: Completed) -> str:
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error:")]
    return (errors or lines or [""])[-1][:300]
