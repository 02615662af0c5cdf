"""The dynamic inventory: the nodes of the registry with the login of the queen, read by a bare Python."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rbee.core.settings import Timing
from rbee.queen.adapters.openssh import OpenSsh
from rbee.queen.adapters.sqlite_nodes import SqliteNodes
from rbee.queen.registry import Node
from rbee_keeper.provisioning.content import content_folder, registry_inventory

SCRIPT = content_folder() / "inventory" / "registry.py"
NODE = Node(
    node_name="workstation",
    ssh_host="10.0.0.7",
    ssh_port=2222,
    ssh_user="vince",
    ssh_key_path="/home/vince/.ssh/id",
    git_repo_url="https://git.home.arpa/rbee.git",
    git_branch="stable",
    install_path="/home/vince/rbee",
    hive_port=9300,
    backends=["cuda", "cpu"],
)


def asked(home: Path, *args: str, **environ: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), *args],
        env={"HOME": str(home), "RBEE_HOME": str(home / "state"), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    store = SqliteNodes(tmp_path / "state" / "beehives.db")
    store.add(NODE)
    store.close()
    return tmp_path


def test_it_is_executable() -> None:
    assert os.access(SCRIPT, os.X_OK)


def test_a_configured_queen_is_told_of_changes_and_no_other(home: Path) -> None:
    assert "vars" not in asked(home, "--list")["rbee_nodes"]
    told = asked(home, "--list", RBEE_QUEEN_URL="http://10.0.0.1:8080")
    assert told["rbee_nodes"]["vars"] == {"rbee_queen_url": "http://10.0.0.1:8080"}
    config = home / "config.toml"
    config.write_text('[queen]\nurl = "http://10.0.0.2:8080"\n')
    told = asked(home, "--list", RBEE_CONFIG=str(config))
    assert told["rbee_nodes"]["vars"] == {"rbee_queen_url": "http://10.0.0.2:8080"}


def test_it_lists_the_nodes_with_the_way_to_them_and_what_the_roles_need(home: Path) -> None:
    listed = asked(home, "--list")
    assert listed["rbee_nodes"]["hosts"] == ["workstation"]
    variables = listed["_meta"]["hostvars"]["workstation"]
    expected = {
        "ansible_host": "10.0.0.7",
        "ansible_port": 2222,
        "ansible_user": "vince",
        "ansible_ssh_private_key_file": "/home/vince/.ssh/id",
        "rbee_install_path": "/home/vince/rbee",
        "rbee_hive_port": 9300,
        "rbee_worker_host": "10.0.0.7",
        "rbee_git_repo_url": "https://git.home.arpa/rbee.git",
        "rbee_git_branch": "stable",
        "rbee_backends": ["cuda", "cpu"],
    }
    assert {name: variables[name] for name in expected} == expected
    assert asked(home, "--host", "workstation") == variables


def test_an_unknown_host_has_no_variables(home: Path) -> None:
    assert asked(home, "--host", "ghost") == {}


def test_without_a_registry_there_are_no_nodes(tmp_path: Path) -> None:
    assert asked(tmp_path, "--list") == {"rbee_nodes": {"hosts": []}, "_meta": {"hostvars": {}}}
    assert not (tmp_path / "state").exists()


def test_what_is_no_registry_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "beehives.db").write_text("no database at all, but a text of some length")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--list"],
        env={"RBEE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")


def test_it_never_writes_to_the_registry(home: Path) -> None:
    database = home / "state" / "beehives.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    before = database.read_bytes(), sorted(path.name for path in database.parent.iterdir())
    asked(home, "--list")
    assert (database.read_bytes(), sorted(path.name for path in database.parent.iterdir())) == before


def test_the_configuration_names_key_file_checkout_and_ssh_client(home: Path) -> None:
    config = home / "config.toml"
    config.write_text(
        '[auth]\napi_key_file = "/etc/rbee/api.key"\n[remote]\ngit_repo_dir = "/srv/src"\n'
        '[ssh]\ncommand = "/opt/ssh -F /etc/rbee/ssh"\n'
    )
    variables = asked(home, "--host", "workstation", RBEE_CONFIG=str(config))
    assert variables["rbee_api_key_file"] == "/etc/rbee/api.key"
    assert variables["rbee_git_repo_dir"] == "/srv/src"
    assert variables["ansible_ssh_executable"] == "/opt/ssh"
    assert variables["ansible_ssh_common_args"].startswith("-F /etc/rbee/ssh ")


def test_the_login_is_the_one_of_the_queen(home: Path) -> None:
    """Same host keys, same strictness, same limits: a node the queen reaches is one Ansible reaches."""
    argv = OpenSsh("ssh", home / "state", Timing(), {}).options(NODE)
    of_queen = {word for flag, word in pairwise(argv) if flag == "-o"}
    words = asked(home, "--host", "workstation")["ansible_ssh_common_args"].split()
    of_ansible = {word for flag, word in pairwise(words) if flag == "-o"}
    assert of_ansible <= of_queen
    shared = ("StrictHostKeyChecking", "UserKnownHostsFile", "GlobalKnownHostsFile", "IdentitiesOnly")
    assert {name for name in shared if any(word.startswith(name) for word in of_ansible)} == set(shared)


def test_the_keeper_uses_the_same_variables(home: Path) -> None:
    record = {**NODE.record(), "status": "unknown"}
    told = registry_inventory().host_variables(record, home / "state", {})
    assert told == asked(home, "--host", "workstation")
