"""Nodes of a queen under test: a real sshd each, registered over HTTP, with real hives started on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import requests

from support.daemons import ROOT
from support.processes import arguments, children, is_alive, with_variable
from support.queens import QueenUnderTest
from support.scripted import free_port
from support.sshd import SshNode

HOST = "127.0.0.11"


def node_environment(folder: Path) -> dict[str, str]:
    """The environment of every command on the node ``folder / "node"``: a state directory and a config."""
    home = folder / "node" / "home" / ".rbee"
    config = folder / "node" / "hive.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(f"[pool]\nlisten_addr = '{HOST}:9200'\n[timing]\nlease_ttl_s = 5\n")
    return {
        "RBEE_HOME": str(home),
        "RBEE_CONFIG": str(config),
        "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'cli'}",
    }


def fields(node: SshNode, key: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The body that adds a node."""
    return {
        "node_name": name,
        "ssh_host": node.host,
        "ssh_port": node.port,
        "ssh_user": node.user,
        "ssh_key_path": str(key),
        "install_path": "/srv/nothing-installed-here",
        "hive_port": free_port(),
        **changes,
    }


def post(queen: QueenUnderTest, path: str, body: dict[str, Any]) -> requests.Response:
    """Ask the queen's registry for a change."""
    return requests.post(f"{queen.url}/v2/registry/beehives/{path}", json=body, timeout=60)


def add(queen: QueenUnderTest, body: dict[str, Any]) -> None:
    """Register a node; fails the test when it is refused."""
    answer = post(queen, "add", body)
    assert answer.status_code == 200, answer.text


def hive_of(node: SshNode) -> psutil.Process | None:
    """The hive daemon that runs on the node, if one does."""
    ours = with_variable("RBEE_HOME", node.home / ".rbee")
    hives = [p for p in ours if "daemon" in arguments(p) and any("rbee-hive" in w for w in arguments(p))]
    return next((p for p in hives if not any(p in children(other.pid) for other in hives)), None)


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or only its exit code is left where nobody collects it (containers)."""
    return not is_alive(pid)


def models_of(queen: QueenUnderTest, name: str) -> requests.Response:
    """A request that needs the node's hive and is quick."""
    return requests.get(f"{queen.url}/v2/models/list", params={"node": name}, timeout=60)
