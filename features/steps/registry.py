"""Steps on SSH servers, logins and the registry of nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from behave import given, then
from features.support import observing, processes
from features.support.fleet import Fleet
from features.support.peers import SilentPort
from features.support.tables import check_fields, values

from support.sshd import fingerprint, make_key


def registry_rows(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """The rows of the registry by name; opening it is part of a queen's start."""
    database = fleet.blep.state / "beehives.db"
    return {row["node_name"]: row for row in observing.rows(database, "beehives")}


@given('a machine "{name:Text}" whose SSH port accepts connections and stays silent')
def silent_ssh_port(context: Any, name: str) -> None:
    world = context.world
    machine = world.fleet.provide(name)
    world.silent = SilentPort(machine.host)
    world.fleet.peers.append(world.silent)
    machine.ssh_port = world.silent.port


@given('the SSH server of "{name:Text}" is stopped')
def sshd_is_stopped(context: Any, name: str) -> None:
    context.world.fleet.node(name).ssh.stop()


@given('the SSH server of "{name:Text}" knows another key')
def sshd_knows_another_key(context: Any, name: str) -> None:
    other = make_key(context.folder / "other_key").with_suffix(".pub")
    (context.world.fleet.node(name).ssh.folder / "authorized_keys").write_text(other.read_text())


@given('blep knows another host key of "{name:Text}"')
def another_host_key(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    node = fleet.node(name)
    fleet.register(node)
    removed = fleet.keeper("setup", "remove-node", "--name", name)
    assert removed.exit_code == 0, removed
    node.ssh.change_host_key()


@then('"{name:Text}" has seen one login, with blep\'s key')
def one_login(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    ssh = fleet.node(name).ssh
    assert ssh.logins == [(ssh.user, fingerprint(fleet.key.with_suffix(".pub")))], ssh.logins


@then('one command of that login to "{name:Text}" started its hive')
def one_start(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    node = fleet.node(name)
    owner = (fleet.blep.state / "queen.id").read_text().strip()
    options = f"--port {node.hive_port} --owner {owner} --worker-host {node.host}"
    assert len([entry for entry in node.ssh.commands if options in entry.command]) == 1, node.ssh.commands
    (hive,) = node.hive_processes
    assert f"daemon {options}" in " ".join(processes.arguments(hive)), hive


@then('"{name:Text}" has seen no login')
def no_login(context: Any, name: str) -> None:
    ssh = context.world.fleet.node(name).ssh
    assert (ssh.logins, ssh.commands) == ([], [])


@then('nobody has logged in to "{name:Text}" since its registration')
def no_login_since(context: Any, name: str) -> None:
    node = context.world.fleet.node(name)
    assert node.logins_at_registration > 0, "it was never registered"
    assert len(node.ssh.logins) == node.logins_at_registration, node.ssh.commands


@then('the only command of that login was "{command:Text}"')
def only_command(context: Any, command: str) -> None:
    (node,) = context.world.fleet.nodes
    commands = [entry.command for entry in node.ssh.commands]
    assert commands == [command], commands


@then('the registry row of "{name:Text}" has')
def row_has(context: Any, name: str) -> None:
    row = registry_rows(context.world.fleet).get(name)
    check_fields(row, values(context.world, context.table))


@then('the registry row of "{name:Text}" was connected no earlier than the command')
def row_is_fresh(context: Any, name: str) -> None:
    row = registry_rows(context.world.fleet)[name]
    assert row["last_connected_unix"] >= int(context.world.last.started_unix), row


@then('the registry row of "{name:Text}" has an error that names "{text:Text}"')
def row_has_error(context: Any, name: str, text: str) -> None:
    row = registry_rows(context.world.fleet)[name]
    assert text in (row["last_error"] or ""), row


@then('the registry has no row "{name:Text}"')
def has_no_row(context: Any, name: str) -> None:
    assert (context.world.fleet.blep.state / "beehives.db").exists()
    assert name not in registry_rows(context.world.fleet)


@then('the registry has a row "{name:Text}"')
def has_row(context: Any, name: str) -> None:
    assert name in registry_rows(context.world.fleet)


@then("stdout lists localhost and then {names:Names}, as they are registered")
def nodes_in_order(context: Any, names: list[str]) -> None:
    fleet: Fleet = context.world.fleet
    heading, *lines = context.world.last.stdout.splitlines()
    blocks = [[line.strip() for line in lines[start : start + 4]] for start in range(0, len(lines), 4)]
    assert heading == "Registered rbee-hive Nodes:"
    assert [block[0] for block in blocks] == [
        "localhost (127.0.0.1)",
        *(f"{name} ({fleet.node(name).host})" for name in names),
    ], context.world.last
    assert [line.split(":")[0] for line in blocks[0][1:]] == ["Status", "Last connected", "Install path"]
    for name, block in zip(names, blocks[1:], strict=True):
        row = registry_rows(fleet)[name]
        moment = datetime.fromtimestamp(row["last_connected_unix"], tz=UTC)
        assert block[1:] == [
            f"Status: {row['status']}",
            f"Last connected: {moment:%Y-%m-%d %H:%M:%S}",
            f"Install path: {row['install_path']}",
        ], (block, row)


@then("no hive runs anywhere")
def no_hive(context: Any) -> None:
    machines = context.world.fleet.machines.values()
    assert [machine.name for machine in machines if machine.hive_processes] == []
