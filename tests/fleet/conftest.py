"""Hosts, software to put on them, and the way to run playbooks against them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet.hosts import CACHE, Lab, missing_prerequisite, running_lab
from fleet.releases import build_release

ROOT = Path(__file__).resolve().parents[2]
KEY = "fleet-test-key-0123456789"
OPERATOR, USER = "op", "bee"
"""Accounts of the hosts beside root: one that may use sudo, one without any rights."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "fleet" in item.path.parts:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session", autouse=True)
def prerequisites() -> None:
    reason = missing_prerequisite()
    if reason is not None:
        pytest.exit(reason, returncode=1)


@dataclass(frozen=True)
class Played:
    """What a playbook did."""

    exit_code: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """The counts of each host."""
        rows = re.findall(r"^(\S+)\s+: (ok=.*)$", self.output, re.M)
        return {host: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in rows}

    def total(self, count: str) -> int:
        return sum(counts[count] for counts in self.recap.values())


class Control:
    """The control machine: runs playbooks against the hosts of a lab.

    Args:
        queen: the host that has the queen as well.
        variables: of all nodes.
    """

    def __init__(self, folder: Path, lab: Lab, *, queen: str = "", **variables: Any) -> None:
        self.folder, self.lab, self.queen = folder, lab, queen
        self.variables = variables
        folder.mkdir(parents=True, exist_ok=True)
        self.inventory = folder / "inventory.json"
        self.write_inventory()

    def write_inventory(self, **of_hosts: dict[str, Any]) -> None:
        """The inventory of the lab; ``of_hosts`` adds variables to single hosts."""
        hosts = {h: self.lab.connection(h) | of_hosts.get(h, {}) for h in self.lab.hosts}
        queen = {host: {} for host in [self.queen] if host}
        content = {"rbee_nodes": {"hosts": hosts, "vars": self.variables}, "rbee_queen": {"hosts": queen}}
        self.inventory.write_text(json.dumps(content))

    @property
    def environment(self) -> dict[str, str]:
        links = f"{os.environ.get('PIP_FIND_LINKS', '')} {self.folder.parent / 'dist'}".strip()
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RBEE_HOME": str(CACHE / "control"),
            "RBEE_API_KEY": KEY,
            "PIP_FIND_LINKS": links,
            "ANSIBLE_NOCOLOR": "1",
        }

    def play(self, playbook: str, *args: str, **variables: Any) -> Played:
        """Run a playbook as an operator would, from the folder of the playbooks."""
        command = ["ansible-playbook", "-i", str(self.inventory), f"{playbook}.yml", *args]
        command += ["-e", json.dumps(variables)] if variables else []
        done = subprocess.run(
            command,
            cwd=ROOT / "playbooks",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Played(done.returncode, done.stdout)


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built releases: a good 0.1.1, a 0.1.2 whose hive and a 0.1.3 whose worker ends at its start."""
    folder = tmp_path_factory.getbasetemp() / "dist"
    for version, broken in (("0.1.1", ""), ("0.1.2", "hive"), ("0.1.3", "worker")):
        build_release(tmp_path_factory.mktemp("source"), folder, version, broken)
    return folder


@pytest.fixture(scope="session")
def fleet(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """Three hosts with systemd whose hive is a service; the tests of a file go through their life.

    Root logs in to n1, which has the queen as well, an account that may use sudo to n2, and to n3 one without
    any rights, whose services run without a login.
    """
    with running_lab(101, 3) as lab:
        lab.add_login("n2", OPERATOR)
        sudoers = lab.folder / "h" / "n2" / "rootfs" / "etc" / "sudoers.d" / OPERATOR
        sudoers.write_text(f"{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)
        lab.add_login("n3", USER)
        lab.run("n3", "loginctl", "enable-linger", USER)
        folder = tmp_path_factory.getbasetemp() / "fleet"
        control = Control(folder, lab, queen="n1", rbee_hive_service=True)
        control.write_inventory(
            n2={"ansible_user": OPERATOR},
            n3={"ansible_user": USER, "rbee_install_path": f"/home/{USER}/rbee"},
        )
        yield control
