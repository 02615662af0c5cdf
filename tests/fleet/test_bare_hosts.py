"""Machines without systemd: a hive as a detached process, for the whole machine and for one user."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.conftest import USER, Control
from fleet.hosts import differences, running_lab

HOSTS = ["n1", "n2"]
before: dict[str, Any] = {}


@pytest.fixture(scope="module")
def bare(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """Two hosts: on n1 rbee is installed by root for the machine, on n2 by a user without any rights."""
    with running_lab(102, 2, with_systemd=False) as lab:
        lab.add_login("n2", USER)
        control = Control(tmp_path_factory.getbasetemp() / "bare", lab, rbee_hive_service=True)
        control.write_inventory(n2={"ansible_user": USER, "rbee_install_path": f"/home/{USER}/rbee"})
        yield control


def owners(control: Control) -> dict[str, str]:
    """Who runs the hive of each host, by what the processes say."""
    listings = {host: control.lab.run(host, "ps", "-eww", "-o", "user=,args=") for host in HOSTS}
    return {
        host: " ".join(
            sorted({line.split()[0] for line in text.splitlines() if "bin/rbee-hive daemon" in line})
        )
        for host, text in listings.items()
    }


def versions(control: Control) -> dict[str, str]:
    found = {}
    for host in HOSTS:
        with urllib.request.urlopen(
            f"http://{control.lab.address(host)}:9200/v1/health", timeout=30
        ) as answer:
            found[host] = json.load(answer)["version"]
    return found


def test_a_detached_hive_runs_as_its_own_account_or_as_the_user(bare: Control) -> None:
    before.update({host: bare.lab.snapshot(host) for host in HOSTS})
    played = bare.play("install")
    assert played.exit_code == 0, played.output
    assert versions(bare) == dict.fromkeys(HOSTS, "0.1.0")
    assert owners(bare) == {"n1": "rbee", "n2": USER}
    assert bare.lab.run("n2", "stat", "-c", "%a %U", f"/home/{USER}/.config/rbee/api.key").split() == [
        "600",
        USER,
    ]


def test_a_second_run_changes_nothing(bare: Control) -> None:
    played = bare.play("install")
    assert (played.exit_code, played.total("changed")) == (0, 0), played.output


def test_an_upgrade_replaces_the_process(bare: Control) -> None:
    played = bare.play("upgrade", rbee_version="0.1.1")
    assert played.exit_code == 0, played.output
    assert versions(bare) == dict.fromkeys(HOSTS, "0.1.1")
    assert owners(bare) == {"n1": "rbee", "n2": USER}


def test_uninstalling_leaves_nothing(bare: Control) -> None:
    played = bare.play("uninstall")
    assert played.exit_code == 0, played.output
    for host in HOSTS:
        assert differences(before[host], bare.lab.snapshot(host)) == []
