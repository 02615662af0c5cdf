"""Steps on machines, their SSH servers and the registry of nodes."""

from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from behave import given, then, when
from features.support import observing
from features.support.fleet import Fleet, Node

from support.sshd import fingerprint, make_key


class SilentPort:
    """A listener that accepts, says nothing, and notes when each connection came."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.accepted: list[float] = []
        self.closed: list[float] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted.append(time.monotonic())
            threading.Thread(target=self._hold, args=(connection,), daemon=True).start()

    def _hold(self, connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(4096):
                    continue
            except OSError:
                pass
            self.closed.append(time.monotonic())

    def close(self) -> None:
        self._socket.close()


def registry_rows(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return {row["node_name"]: row for row in observing.rows(fleet.blep.state / "beehives.db", "beehives")}


def add_node(fleet: Fleet, name: str, host: str, port: int, user: str, key: str, *more: str) -> Any:
    return fleet.keeper(
        "setup", "add-node", "--name", name, "--ssh-host", host, "--ssh-port", str(port),
        "--ssh-user", user, "--ssh-key", key, "--install-path", "~/rbee", *more,
    )  # fmt: skip


@given('a machine "{name}" that runs an SSH server')
def machine_with_sshd(context: Any, name: str) -> None:
    context.world.fleet.add_node(name)


@given('"{name}" is registered')
def is_registered(context: Any, name: str) -> None:
    context.world.fleet.register(context.world.fleet.nodes[name])


@given('the machines "{first}" and "{second}" are registered in this order')
def two_machines(context: Any, first: str, second: str) -> None:
    for name in (first, second):
        context.world.fleet.register(context.world.fleet.add_node(name))


@given('an SSH port of "{name}" that accepts connections and stays silent')
def silent_ssh_port(context: Any, name: str) -> None:
    silent = SilentPort()
    context.add_cleanup(silent.close)
    context.world.noted["silent"] = silent
    context.world.noted["node"] = name


@given('the SSH server of "{name}" is stopped')
def sshd_is_stopped(context: Any, name: str) -> None:
    context.world.fleet.nodes[name].ssh.stop()


@given('the SSH server of "{name}" knows another key')
def sshd_knows_another_key(context: Any, name: str) -> None:
    node: Node = context.world.fleet.nodes[name]
    other = make_key(context.folder / "other_key")
    (node.ssh.folder / "authorized_keys").write_text(other.with_suffix(".pub").read_text())


@given('blep knows another host key of "{name}"')
def another_host_key(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    node = fleet.nodes[name]
    fleet.register(node)
    removed = fleet.keeper("setup", "remove-node", "--name", name)
    assert removed.exit_code == 0, removed.stderr
    node.ssh.change_host_key()


@when('blep adds the node "{name}" with every flag')
def add_with_every_flag(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    node = fleet.nodes[name]
    context.world.finished(
        fleet.keeper(
            "setup",
            "add-node",
            "--name",
            name,
            "--ssh-host",
            node.ssh.host,
            "--ssh-port",
            str(node.ssh.port),
            "--ssh-user",
            node.ssh.user,
            "--ssh-key",
            "~/.ssh/id_ed25519",
            "--git-repo",
            "https://git.home.arpa/rbee.git",
            "--git-branch",
            "main",
            "--install-path",
            "~/rbee",
        )  # fmt: skip
    )


@when('blep adds the node "{name}"')
def add_plain(context: Any, name: str) -> None:
    fleet, noted = context.world.fleet, context.world.noted
    node = fleet.nodes.get(name)
    host, port = (node.ssh.host, node.ssh.port) if node else ("127.0.0.1", noted["silent"].port)
    user = node.ssh.user if node else "nobody"
    context.world.finished(add_node(fleet, name, host, port, user, str(fleet.key)))


@when('blep adds the node "{name}" at "{host}"')
def add_at_host(context: Any, name: str, host: str) -> None:
    fleet = context.world.fleet
    context.world.finished(add_node(fleet, name, host, 22, "nobody", str(fleet.key)))


@when('blep adds the node "{name}" with the key "{key}"')
def add_with_key(context: Any, name: str, key: str) -> None:
    context.world.finished(add_node(context.world.fleet, name, "127.0.0.1", 22, "nobody", key))


@then('the SSH server of "{name}" has accepted one login with the scenario\'s key')
def one_login(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    node = fleet.nodes[name]
    assert node.ssh.logins == [(node.ssh.user, fingerprint(fleet.key.with_suffix(".pub")))], node.ssh.logins


@then('the SSH server of "{name}" has accepted no login')
def no_login(context: Any, name: str) -> None:
    logins = context.world.fleet.nodes[name].ssh.logins
    assert logins == [], logins


@then('the SSH server of "{name}" has run "{command}"')
def has_run(context: Any, name: str, command: str) -> None:
    commands = [entry.command for entry in context.world.fleet.nodes[name].ssh.commands]
    assert command in commands, commands


@then('the registry row of "{name}" holds what the flags said')
def row_holds_flags(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    node, row = fleet.nodes[name], registry_rows(fleet)[name]
    home = "/root" if node.ssh.user == "root" else f"/home/{node.ssh.user}"
    expected = {
        "node_name": name,
        "ssh_host": node.ssh.host,
        "ssh_port": node.ssh.port,
        "ssh_user": node.ssh.user,
        "ssh_key_path": str(fleet.blep.home / ".ssh" / "id_ed25519"),
        "git_repo_url": "https://git.home.arpa/rbee.git",
        "git_branch": "main",
        "install_path": f"{home}/rbee",
        "hive_port": 9200,
    }
    assert {key: row[key] for key in expected} == expected, row


@then('the registry row of "{name}" is reachable since the command')
def row_is_reachable(context: Any, name: str) -> None:
    row = registry_rows(context.world.fleet)[name]
    assert row["status"] == "reachable", row
    assert row["last_connected_unix"] >= int(context.world.last.started_unix), row


@then('the registry has no row "{name}"')
def no_row(context: Any, name: str) -> None:
    assert name not in registry_rows(context.world.fleet)


@then('the registry has a row "{name}"')
def has_row(context: Any, name: str) -> None:
    assert name in registry_rows(context.world.fleet)


@then("the silent port has counted 3 connections with gaps of at least 200 and 400 ms")
def three_connections(context: Any) -> None:
    silent: SilentPort = context.world.noted["silent"]
    assert len(silent.accepted) == 3, silent.accepted
    gaps = [later - ended for ended, later in zip(silent.closed, silent.accepted[1:], strict=False)]
    assert gaps[0] >= 0.2, gaps
    assert gaps[1] >= 0.4, gaps


@then(
    'stdout shows the nodes "localhost", "{first}", "{second}" in this order, each as its registry row says'
)
def nodes_in_order(context: Any, first: str, second: str) -> None:
    printed, rows = context.world.last.stdout, registry_rows(context.world.fleet)
    position = printed.index("localhost (127.0.0.1)")
    for name in (first, second):
        row = rows[name]
        moment = datetime.fromtimestamp(row["last_connected_unix"], tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        block = printed[printed.index(f"{name} ({row['ssh_host']})", position) :]
        position = printed.index(f"{name} ({row['ssh_host']})", position)
        assert block.index("Status:") < block.index(f"Last connected: {moment}"), block
        assert f"Install path: {row['install_path']}" in block, block
