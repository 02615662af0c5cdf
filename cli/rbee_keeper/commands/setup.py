"""``setup``: the registry of nodes, and the software on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rbee_keeper.commands.provision import COMMANDS
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.parameters import NODE_NAME, JsonValue, KeeperGroup, json_option
from rbee_keeper.results import Message, NodeDetails, NodeList
from rbee_keeper.session import Session
from rbee_keeper.terminal import printable

_REGISTRY = "/v2/registry/beehives"
_name = click.option("--name", type=NODE_NAME, required=True, help="The node.")
_BACKENDS = JsonValue(list, '["cuda","cpu"]')
_DEVICES = JsonValue(dict, '{"cuda":2,"cpu":1}')
_PORT = click.IntRange(1, 65535)
_HIVE_PORT = click.IntRange(1024, 65535)


@click.group(cls=KeeperGroup)
def setup() -> None:
    """Register the machines of the fleet and install rbee on them."""


for _command in COMMANDS:
    setup.add_command(_command)


@setup.command("add-node")
@click.option("--name", type=NODE_NAME, required=True, help="How the fleet calls it.")
@click.option("--ssh-host", required=True, help="Host name or address.")
@click.option("--ssh-user", required=True, help="Login name.")
@click.option("--install-path", required=True, help="Where rbee lives there; ~ is the home of --ssh-user.")
@click.option("--ssh-port", type=_PORT, default=22, show_default=True)
@click.option("--ssh-key", help="Private key file on this machine.")
@click.option("--git-repo", help="Install from this repository.")
@click.option("--git-branch", default="main", show_default=True)
@click.option("--hive-port", type=_HIVE_PORT, default=9200, show_default=True)
@click.option("--backends", type=_BACKENDS, help='JSON, e.g. ["cuda","cpu"].')
@click.option("--devices", type=_DEVICES, help='JSON, e.g. {"cuda":2,"cpu":1}.')
@click.pass_obj
def add_node(session: Session, /, name: str, **flags: Any) -> Message:
    """Test the SSH login of a machine and register it."""
    from rbee.core.errors import SshConnectionFailed

    session.node = name
    body = {"node_name": name, **_node_fields(session, flags)}
    queen = session.queen()
    session.terminal.line(f"[queen-rbee] 🔌 Testing SSH connection to {printable(flags['ssh_host'])}")
    try:
        queen.post(f"{_REGISTRY}/add", body, timeout_s=_login_patience_s(session))
    except SshConnectionFailed as error:
        reason = printable(str(error.details.get("reason") or error.message))
        session.terminal.line(f"[queen-rbee] ❌ SSH connection failed: {reason}")
        raise
    return Message([f"[queen-rbee] ✅ SSH connection successful! Node '{name}' saved to registry"])


@setup.command("update-node")
@_name
@click.option("--ssh-host", help="Host name or address.")
@click.option("--ssh-user", help="Login name.")
@click.option("--install-path", help="Where rbee lives there.")
@click.option("--ssh-port", type=_PORT)
@click.option("--ssh-key", help="Private key file on this machine.")
@click.option("--git-repo", help="Install from this repository.")
@click.option("--git-branch")
@click.option("--hive-port", type=_HIVE_PORT)
@click.option("--backends", type=_BACKENDS, help='JSON, e.g. ["cuda","cpu"].')
@click.option("--devices", type=_DEVICES, help='JSON, e.g. {"cuda":2,"cpu":1}.')
@click.pass_obj
def update_node(session: Session, /, name: str, **flags: Any) -> Message:
    """Change what is stored about a node; what is not named stays."""
    session.node = name
    changes = _node_fields(session, flags)
    if not changes:
        raise click.UsageError("Name at least one value to change.")
    queen = session.queen()
    queen.post(f"{_REGISTRY}/update", {"node_name": name, **changes}, timeout_s=_login_patience_s(session))
    return Message([f"[queen-rbee] ✅ Node '{name}' updated in registry"])


@setup.command("list-nodes")
@json_option
@click.pass_obj
def list_nodes(session: Session, /) -> NodeList:
    """List the registered nodes."""
    return NodeList(session.queen().get(f"{_REGISTRY}/list", timeout_s=60.0).get("nodes", []))


@setup.command("show-node")
@_name
@json_option
@click.pass_obj
def show_node(session: Session, /, name: str) -> NodeDetails:
    """Show all that is stored about a node."""
    session.node = name
    return NodeDetails(session.queen().get(f"{_REGISTRY}/{name}"))


@setup.command("remove-node")
@_name
@click.pass_obj
def remove_node(session: Session, /, name: str) -> Message:
    """Remove a node from the registry."""
    session.node = name
    session.queen().post(f"{_REGISTRY}/remove", {"node_name": name})
    return Message([f"[queen-rbee] ✅ Node '{name}' removed from registry"])


def _node_fields(session: Session, flags: dict[str, Any]) -> dict[str, Any]:
    """The fields of a node record that were given, under their names on the wire."""
    names = {"ssh_key": "ssh_key_path", "git_repo": "git_repo_url"}
    given = {names.get(flag, flag): value for flag, value in flags.items() if value is not None}
    if "ssh_key_path" in given:
        given["ssh_key_path"] = _key_file(session, given["ssh_key_path"])
    if "install_path" in given and "ssh_user" in given:
        given["install_path"] = _on_node(given["install_path"], given["ssh_user"])
    return given


def _key_file(session: Session, stated: str) -> str:
    """The key's absolute path.

    Raises:
        KeeperFailure: there is no such file.
    """
    home = session.environ.get("HOME")
    path = Path(home) / stated[2:] if home and stated.startswith("~/") else Path(stated).expanduser()
    if not path.is_file():
        raise KeeperFailure(
            f"SSH key file not found: {path}",
            suggestion=f"Create one: ssh-keygen -t ed25519 -f {path}",
            code="INVALID_REQUEST",
        )
    return str(path.absolute())


def _on_node(path: str, user: str) -> str:
    """``~`` on a node is the home of the login there, not of the person who types."""
    home = "/root" if user == "root" else f"/home/{user}"
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def _login_patience_s(session: Session) -> float:
    """How long the queen may take to try a login as often as it does."""
    timing = session.settings.timing
    return timing.ssh_attempts * timing.ssh_connect_timeout_s + sum(timing.ssh_delays_ms) / 1000 + 30.0
