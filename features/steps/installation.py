"""Steps on the software that playbooks put on nodes."""

from __future__ import annotations

import fcntl
import json
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from behave import given, then
from features.support.fleet import Fleet
from features.support.machines import Node
from features.support.repository import git, make_repository
from features.support.sandbox import API_KEY
from features.support.tables import cells

from support.sshd import fingerprint


def installation(node: Node) -> Path:
    return Path(node.install_path)


def config_folder(node: Node) -> Path:
    return node.sandbox.home / ".config" / "rbee"


@given('a repository of this project with the branch "{branch:Text}"')
def repository(context: Any, branch: str) -> None:
    folder = context.folder / "repository"
    folder.mkdir()
    context.world.noted["repository"] = make_repository(folder, branch)


@given('the registered machine "{name:Text}" with that repository and the branch "{branch:Text}"')
def registered_with_repository(context: Any, name: str, branch: str) -> None:
    fleet: Fleet = context.world.fleet
    node = fleet.provide_node(name)
    fleet.register(node, git_repo_url=context.world.noted["repository"], git_branch=branch)


@given('a queen with no configuration for the programs of "{name:Text}"')
def queen_without_paths(context: Any, name: str) -> None:
    context.world.fleet.provide_node(name)
    context.world.fleet.start_queen()


@given('a queen with own paths for the programs of "{name:Text}"')
def queen_with_paths(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    root = installation(fleet.provide_node(name))
    program = root / "programs" / "own-rbee-hive"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {root}/current/bin/rbee-hive "$@"\n')
    program.chmod(0o755)
    fleet.blep.configure("remote", binary_path=str(program), git_repo_dir=str(root / "checkout"))
    fleet.start_queen()


@given('"{person:Text}" holds the fleet for "{why:Text}"')
def fleet_is_held(context: Any, person: str, why: str) -> None:
    file = context.world.fleet.blep.state / "run" / "fleet.lock"
    lock = file.open("w")
    context.world.noted["lock"] = lock
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(json.dumps({"who": person, "pid": 1, "since": "2026-01-31 08:00:00", "why": why}))
    lock.flush()


@then('every login to "{name:Text}" used blep\'s key')
def logins_use_the_key(context: Any, name: str) -> None:
    fleet: Fleet = context.world.fleet
    ssh = fleet.node(name).ssh
    expected = (ssh.user, fingerprint(fleet.key.with_suffix(".pub")))
    assert len(ssh.logins) > fleet.node(name).logins_at_registration
    assert set(ssh.logins) == {expected}, ssh.logins


@then('"{folder:Text}" of the installation on "{name:Text}" is a checkout of the branch "{branch:Text}"')
def is_checkout(context: Any, folder: str, name: str, branch: str) -> None:
    checkout = installation(context.world.fleet.node(name)) / folder
    original = context.folder / "repository"
    assert git(checkout, "rev-parse", "HEAD") == git(original, "rev-parse", branch)
    assert git(checkout, "rev-parse", "--abbrev-ref", "HEAD") == branch


@then('these programs of the installation on "{name:Text}" print')
def programs_print(context: Any, name: str) -> None:
    node = context.world.fleet.node(name)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(node.sandbox.home)}
    expected = [(program, 0, text + "\n") for program, text in cells(context.table)]
    printed = []
    for program, _, _ in expected:
        command = [installation(node) / "current" / "bin" / program, "--version"]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        printed.append((program, shown.returncode, shown.stdout))
    assert printed == expected, printed


@then('"{name:Text}" has a configuration for its hive, and the fleet key with mode 0600')
def is_configured(context: Any, name: str) -> None:
    node = context.world.fleet.node(name)
    folder = config_folder(node)
    content = tomllib.loads((folder / "config.toml").read_text())
    assert content["pool"]["listen_addr"] == f"{node.host}:{node.hive_port}", content
    assert content["pool"]["worker_host"] == node.host, content
    key = Path(content["auth"]["api_key_file"])
    assert key == folder / "api.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_text() == API_KEY + "\n"


@then("no output holds the fleet key")
def key_is_hidden(context: Any) -> None:
    world = context.world
    runs = [file.read_text(errors="replace") for file in (world.fleet.blep.state / "runs").rglob("*.*")]
    assert runs, "no run was recorded"
    assert [text for text in [world.last.stdout, world.last.stderr, *runs] if API_KEY in text] == []


@then('nothing was changed on "{name:Text}"')
def nothing_changed(context: Any, name: str) -> None:
    newest = sorted((context.world.fleet.blep.state / "runs").iterdir())[-1]
    record = json.loads((newest / "run.json").read_text())
    assert record["outcome"] == "succeeded", record
    assert record["changed"].get(name, 0) == 0, record


@then('neither software nor configuration is left on "{name:Text}"')
def nothing_left(context: Any, name: str) -> None:
    node = context.world.fleet.node(name)
    assert not installation(node).exists(), sorted(installation(node).rglob("*"))[:10]
    assert not config_folder(node).exists(), sorted(config_folder(node).iterdir())


@then("stdout lists the runs, the newest first")
def runs_are_listed(context: Any) -> None:
    runs = context.world.last.json()["runs"]
    told = [[run["operation"], run["outcome"]] for run in runs]
    assert told == [list(row) for row in cells(context.table)], runs


@then('the hive of "{name:Text}" was started as "{program:Text}" of the installation')
def hive_was_started_as(context: Any, name: str, program: str) -> None:
    node = context.world.fleet.node(name)
    expected = str(installation(node) / program)
    starts = [entry.command for entry in node.ssh.commands if " daemon " in entry.command]
    assert starts, [entry.command for entry in node.ssh.commands]
    assert [command for command in starts if f" {expected} " not in command] == [], starts
