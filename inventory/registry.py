#!/usr/bin/env python3
"""The registered nodes as an Ansible inventory: reads the queen's registry, never writes it.

Needs nothing but the standard library. ``--list`` prints all nodes, ``--host NAME`` the variables of one.
The registry is ``beehives.db`` in RBEE_HOME (default ``~/.rbee``). With RBEE_QUEEN_URL or ``queen.url`` in
the configuration, that queen sends a node no tasks while it is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Ansible may run on an older Python than rbee
    tomllib = None  # type: ignore[assignment]

GROUP = "rbee_nodes"
SSH_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "accept-new",
    "GlobalKnownHostsFile": "/dev/null",
    "HashKnownHosts": "no",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "LogLevel": "ERROR",
}
"""As the queen logs in: a first host key is taken, a changed one refused, and a dead host noticed."""


class Unreadable(Exception):
    """The registry cannot be read; the text says why."""


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--list", action="store_true", help="all nodes")
    choice.add_argument("--host", metavar="NAME", help="the variables of one node")
    options = parser.parse_args(argv)
    home = Path(environ.get("RBEE_HOME") or Path(environ.get("HOME", "~")) / ".rbee").expanduser().absolute()
    try:
        nodes = read_nodes(home / "beehives.db")
        configuration = read_configuration(environ)
    except Unreadable as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    variables = {node["node_name"]: host_variables(node, home, configuration) for node in nodes}
    queen_url = environ.get("RBEE_QUEEN_URL") or configuration.get("queen", {}).get("url") or ""
    told = variables.get(options.host, {}) if options.host else inventory(variables, queen_url)
    print(json.dumps(told, indent=2))
    return 0


def inventory(variables: Mapping[str, Any], queen_url: str) -> dict[str, Any]:
    """The answer to ``--list``, with all variables, so that Ansible does not ask for each host.

    Args:
        queen_url: the queen to tell of nodes that are being changed; empty where none is configured.
    """
    group: dict[str, Any] = {"hosts": list(variables)}
    if queen_url:
        group["vars"] = {"rbee_queen_url": queen_url}
    return {GROUP: group, "_meta": {"hostvars": dict(variables)}}


def read_nodes(database: Path) -> list[dict[str, Any]]:
    """The rows of the registry in the order of their registration; none where there is no registry yet.

    Raises:
        Unreadable: the file is there and is no registry.
    """
    if not database.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("SELECT * FROM beehives ORDER BY rowid").fetchall()
    except sqlite3.Error as error:
        raise Unreadable(f"{database}: {error}") from None
    nodes = [dict(row) for row in rows]
    for node in nodes:
        for column in ("backends", "devices"):
            node[column] = json.loads(node[column]) if isinstance(node.get(column), str) else node.get(column)
    return nodes


def read_configuration(environ: Mapping[str, str]) -> dict[str, Any]:
    """The control machine's config file, of which a few keys concern the nodes.

    Raises:
        Unreadable: it is not TOML.
    """
    config_home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")) / ".config")
    named = [environ["RBEE_CONFIG"]] if environ.get("RBEE_CONFIG") else []
    candidates = [*named, f"{config_home}/rbee/config.toml", "/etc/rbee/config.toml"]
    file = next((Path(path).expanduser() for path in candidates if Path(path).expanduser().is_file()), None)
    if file is None or tomllib is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{file}: {error}") from None


def host_variables(
    node: Mapping[str, Any], home: Path, configuration: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What Ansible must know about a node: the way to it, and what the roles are to do there.

    Args:
        node: a row of the registry, or a node record of the queen's API.
        home: the control machine's state directory; it has the host keys the queen has seen.
        configuration: the control machine's config file by section.
    """
    program, *arguments = str(configuration.get("ssh", {}).get("command", "ssh")).split()
    options = {**SSH_OPTIONS, "UserKnownHostsFile": str(home / "known_hosts")}
    words = [
        f'-o {name}="{value}"' if " " in value else f"-o {name}={value}" for name, value in options.items()
    ]
    variables = {
        "ansible_host": node["ssh_host"],
        "ansible_port": node.get("ssh_port") or 22,
        "ansible_user": node["ssh_user"],
        "ansible_ssh_executable": program,
        "rbee_install_path": node["install_path"],
        "rbee_hive_port": node.get("hive_port") or 9200,
        "rbee_worker_host": node["ssh_host"],
        "rbee_git_repo_url": node.get("git_repo_url") or "",
        "rbee_git_branch": node.get("git_branch") or "main",
        "rbee_git_repo_dir": configuration.get("remote", {}).get("git_repo_dir") or "",
        "rbee_backends": node.get("backends") or [],
        "rbee_api_key_file": str(Path(configuration.get("auth", {}).get("api_key_file") or "").expanduser())
        if configuration.get("auth", {}).get("api_key_file")
        else "",
    }
    if node.get("ssh_key_path"):
        variables["ansible_ssh_private_key_file"] = node["ssh_key_path"]
        words.append("-o IdentitiesOnly=yes")
    variables["ansible_ssh_common_args"] = " ".join([*arguments, *words])
    return variables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
