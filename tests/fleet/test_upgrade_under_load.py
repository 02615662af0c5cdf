"""Clients lose nothing while the fleet is moved to another release, nor when that release is a bad one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.hosts import running_lab
from fleet.served_fleet import Clients, ServedFleet, report
from support.daemons import wait_until

HOSTS = ["n1", "n2", "n3"]
CLIENTS = 3
"""One more than the nodes that stay in service have slots, so that now and then one waits in line."""


@pytest.fixture(scope="module")
def served(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    """Three nodes with 0.1.0 and a model; their hives are started by the queen."""
    with (
        running_lab(103, 3) as lab,
        ServedFleet(tmp_path_factory.getbasetemp() / "served", lab, dist) as fleet,
    ):
        fleet.register()
        installed = fleet.keeper("setup", "install", "--all")
        assert installed.code == 0, installed.stdout + installed.stderr
        fleet.load_models()
        yield fleet


def test_an_upgrade_of_all_nodes_costs_no_client_a_token(served: ServedFleet) -> None:
    with Clients(served.queen.url, CLIENTS).at_work() as count:
        upgraded = served.keeper("setup", "upgrade", "--all", "--version", "0.1.1")
        assert upgraded.code == 0, upgraded.stdout + upgraded.stderr
    report("upgrade", count, served)
    assert count.defects == []
    assert set(count.nodes) == set(HOSTS)
    assert served.versions() == dict.fromkeys(HOSTS, "0.1.1")
    assert set(served.times_out_of_service()) == set(HOSTS)
    assert served.cordoned() == []
    assert served.call("GET", "/v2/nodes")["rollout"] is None


@pytest.mark.parametrize(
    ("version", "flaw"), [("0.1.2", "hive ends at its start"), ("0.1.3", "worker ends at its start")]
)
def test_a_bad_release_is_taken_back_on_the_first_node_and_costs_no_client_a_token(
    served: ServedFleet, version: str, flaw: str
) -> None:
    before = served.hive_pids()
    with Clients(served.queen.url, CLIENTS).at_work() as count:
        upgraded = served.keeper("setup", "upgrade", "--all", "--version", version)
    report(flaw, count, served)
    assert upgraded.code == 1, upgraded.stdout + upgraded.stderr
    assert "n1" in upgraded.stderr
    assert "Left as they were: n2, n3" in upgraded.stderr
    assert count.defects == []
    assert served.versions() == dict.fromkeys(HOSTS, "0.1.1")
    after = served.hive_pids()
    assert [after[host] for host in HOSTS[1:]] == [before[host] for host in HOSTS[1:]]
    assert served.cordoned() == []
    assert served.call("GET", "/v2/nodes")["rollout"] is None


def test_a_run_whose_control_process_is_killed_is_finished_by_the_next_one(served: ServedFleet) -> None:
    command = ("setup", "rollback", "--all", "--version", "0.1.0")
    with Clients(served.queen.url, CLIENTS).at_work() as count:
        with served.running_keeper(*command) as keeper:
            wait_until(lambda: served.version("n1") == "0.1.0", 120, "the first node's switch")
            keeper.kill()
        wait_until(lambda: not served.is_being_changed(), 60, "the end of the playbook")
        assert served.cordoned() == ["n1"]
        again = served.keeper(*command)
        assert again.code == 0, again.stdout + again.stderr
    report("killed and run again", count, served)
    assert count.defects == []
    assert served.versions() == dict.fromkeys(HOSTS, "0.1.0")
    assert served.cordoned() == []
    assert served.call("GET", "/v2/nodes")["rollout"] is None


def test_the_plain_playbook_upgrades_the_registered_nodes_and_costs_no_client_a_token(
    served: ServedFleet,
) -> None:
    with Clients(served.queen.url, CLIENTS).at_work() as count:
        upgraded = served.playbook("upgrade", "-e", "rbee_version=0.1.1")
    report("plain playbook", count, served)
    assert upgraded.code == 0, upgraded.stdout + upgraded.stderr
    assert count.defects == []
    assert served.versions() == dict.fromkeys(HOSTS, "0.1.1")
    assert served.cordoned() == []


def test_a_node_that_dies_stops_the_roll_out_and_the_next_run_finishes_it(served: ServedFleet) -> None:
    command = ("setup", "upgrade", "--all", "--version", "0.1.0")
    with Clients(served.queen.url, CLIENTS).at_work() as count:
        with served.running_keeper(*command) as keeper:
            # From here on it serves nobody, so that its end takes no stream along.
            wait_until(lambda: served.is_drained("n2"), 180, "the second node out of service")
            served.lab.lab("fault", "n2", "crash")
            assert keeper.wait(120) == 1
        assert served.version("n3") == "0.1.1"
        assert served.cordoned() == ["n2"]
        served.lab.lab("fault", "n2", "boot")
        again = served.keeper(*command)
        assert again.code == 0, again.stdout + again.stderr
    report("died and run again", count, served)
    assert count.defects == []
    assert served.versions() == dict.fromkeys(HOSTS, "0.1.0")
    assert served.cordoned() == []
    assert served.call("GET", "/v2/nodes")["rollout"] is None
