"""The life of three machines with systemd, from bare to bare; each test goes on where the last ended."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from fleet.conftest import USER, Control
from fleet.hosts import differences
from support.daemons import wait_until

HOSTS = ["n1", "n2", "n3"]
OF_ROOT = ["n1", "n2"]
"""Where rbee is installed for the machine; on n3 it is a user's."""
before: dict[str, Any] = {}


def of_user(*argv: str) -> tuple[str, ...]:
    """A command of the user of n3, with the way to that user's systemd."""
    shown = 'XDG_RUNTIME_DIR=/run/user/$(id -u) exec "$@"'
    return ("runuser", "-u", USER, "--", "sh", "-c", shown, "sh", *argv)


def health(control: Control, host: str) -> dict[str, Any]:
    """What the hive of a host says about itself; its journal when it says nothing."""
    url = f"http://{control.lab.address(host)}:9200/v1/health"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
    except OSError as error:
        journal = control.lab.run(host, "journalctl", "-n", "80", "--no-pager", check=False)
        raise AssertionError(f"{host}: {error}\n{journal}") from None
    return found


def answers(control: Control, host: str) -> bool:
    try:
        return bool(health(control, host))
    except AssertionError:
        return False


def versions(control: Control) -> dict[str, str]:
    return {host: health(control, host)["version"] for host in HOSTS}


def test_check_mode_on_clean_hosts_fails_nowhere_and_changes_nothing(fleet: Control) -> None:
    before.update({host: fleet.lab.snapshot(host) for host in HOSTS})
    played = fleet.play("site", "--check", "--limit", "n1")
    assert played.exit_code == 0, played.output
    assert played.recap["n1"]["failed"] == 0
    assert played.recap["n1"]["changed"] > 0
    assert differences(before["n1"], fleet.lab.snapshot("n1")) == []


def test_a_host_without_room_is_refused_before_anything_has_changed(fleet: Control) -> None:
    fleet.lab.lab("exec", "n2", "mkdir", "/opt/rbee")
    fleet.lab.lab("exec", "n2", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/opt/rbee")
    played = fleet.play("install", "--limit", "n2")
    fleet.lab.lab("exec", "n2", "umount", "/opt/rbee")
    fleet.lab.lab("exec", "n2", "rmdir", "/opt/rbee")
    assert played.exit_code != 0
    assert "n2 has 64 MB free at /opt/rbee; an installation needs 1500 MB" in played.output
    assert differences(before["n2"], fleet.lab.snapshot("n2")) == []


def test_installing_gives_a_hardened_service_that_answers_on_the_address_of_the_node(fleet: Control) -> None:
    played = fleet.play("site", "-vvv", "--diff")
    assert played.exit_code == 0, played.output
    # Nor does anything of what was said hold the key, at any verbosity.
    assert fleet.environment["RBEE_API_KEY"] not in played.output
    assert versions(fleet) == dict.fromkeys(HOSTS, "0.1.0")
    for host in OF_ROOT:
        shown = fleet.lab.run(
            host, "systemctl", "show", "rbee-hive", "-p", "User,ProtectSystem,UnitFileState"
        )
        assert sorted(shown.split()) == ["ProtectSystem=strict", "UnitFileState=enabled", "User=rbee"]
        assert fleet.lab.run(host, "stat", "-c", "%a %U", "/etc/rbee/api.key").strip() == "600 rbee"
    shown = fleet.lab.run(
        "n3", *of_user("systemctl", "--user", "show", "rbee-hive", "-p", "NoNewPrivileges,UnitFileState")
    )
    assert sorted(shown.split()) == ["NoNewPrivileges=yes", "UnitFileState=enabled"]
    key = f"/home/{USER}/.config/rbee/api.key"
    assert fleet.lab.run("n3", "stat", "-c", "%a %U", key).strip() == f"600 {USER}"
    for host in HOSTS:
        listening = fleet.lab.run(host, "ss", "-Hltn", "sport", "=", ":9200").split()
        assert f"{fleet.lab.address(host)}:9200" in listening


def test_the_queen_is_a_hardened_service_too(fleet: Control) -> None:
    shown = fleet.lab.run("n1", "systemctl", "show", "rbee-queen", "-p", "User,ProtectSystem,UnitFileState")
    assert sorted(shown.split()) == ["ProtectSystem=strict", "UnitFileState=enabled", "User=rbee"]
    assert fleet.lab.run("n1", "stat", "-c", "%a %U", "/etc/rbee/queen.key").strip() == "600 rbee"
    told = json.loads(fleet.lab.run("n1", "curl", "-s", "http://127.0.0.1:8080/health"))
    assert (told["service"], told["version"]) == ("queen-rbee", "0.1.0")
    refused = fleet.lab.run("n1", "curl", "-s", "http://127.0.0.1:8080/v2/nodes")
    assert json.loads(refused)["error"]["code"] == "MISSING_API_KEY"


def test_a_user_s_service_comes_back_with_the_machine(fleet: Control) -> None:
    fleet.lab.lab("fault", "n3", "crash")
    fleet.lab.lab("fault", "n3", "boot")
    wait_until(lambda: answers(fleet, "n3"), 60, "the hive after the boot")


def test_a_second_run_changes_nothing(fleet: Control) -> None:
    played = fleet.play("site")
    assert (played.exit_code, played.total("changed")) == (0, 0), played.output


def test_an_upgrade_switches_every_host_and_a_second_one_changes_nothing(fleet: Control) -> None:
    played = fleet.play("upgrade", rbee_version="0.1.1")
    assert played.exit_code == 0, played.output
    assert versions(fleet) == dict.fromkeys(HOSTS, "0.1.1")
    again = fleet.play("upgrade", rbee_version="0.1.1")
    assert (again.exit_code, again.total("changed")) == (0, 0), again.output


def test_a_release_that_does_not_start_is_rolled_back_on_the_first_host_and_reaches_no_other(
    fleet: Control,
) -> None:
    started = {host: health(fleet, host)["pid"] for host in HOSTS}
    played = fleet.play("upgrade", rbee_version="0.1.2", rbee_hive_start_timeout_s=8)
    assert played.exit_code != 0
    assert "n1 is back on 0.1.1" in played.output
    assert "broken on purpose" in played.output
    assert versions(fleet) == dict.fromkeys(HOSTS, "0.1.1")
    paths = dict.fromkeys(OF_ROOT, "/opt/rbee") | {"n3": f"/home/{USER}/rbee"}
    links = {host: fleet.lab.run(host, "readlink", f"{paths[host]}/current").strip() for host in HOSTS}
    assert links == dict.fromkeys(HOSTS, "releases/0.1.1")
    assert {host: health(fleet, host)["pid"] for host in HOSTS[1:]} == {h: started[h] for h in HOSTS[1:]}


def test_a_host_that_cannot_take_the_release_stops_the_roll_out_before_any_has_changed(
    fleet: Control,
) -> None:
    started = {host: health(fleet, host)["pid"] for host in HOSTS}
    fleet.lab.run("n2", "rm", "-rf", "/opt/rbee/releases/0.1.2")
    fleet.lab.run("n2", "mkdir", "/opt/rbee/releases/0.1.2")
    fleet.lab.lab("exec", "n2", "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", "/opt/rbee/releases/0.1.2")
    played = fleet.play("upgrade", rbee_version="0.1.2")
    fleet.lab.lab("exec", "n2", "umount", "/opt/rbee/releases/0.1.2")
    assert played.exit_code != 0
    assert {host: health(fleet, host)["pid"] for host in HOSTS} == started


def test_a_host_without_room_for_another_release_stops_the_roll_out_too(fleet: Control) -> None:
    started = {host: health(fleet, host)["pid"] for host in HOSTS}
    played = fleet.play("upgrade", rbee_version="0.1.3", rbee_base_release_disk_mb=100_000_000)
    assert played.exit_code != 0
    assert "another release needs 100000000 MB" in played.output
    assert {host: health(fleet, host)["pid"] for host in HOSTS} == started


def test_rolling_back_gives_the_release_before(fleet: Control) -> None:
    played = fleet.play("rollback")
    assert played.exit_code == 0, played.output
    assert versions(fleet) == dict.fromkeys(HOSTS, "0.1.0")


def test_a_check_tells_a_host_whose_hive_does_not_run(fleet: Control) -> None:
    assert fleet.play("check").exit_code == 0
    fleet.lab.run("n2", "systemctl", "stop", "rbee-hive")
    played = fleet.play("check", rbee_hive_start_timeout_s=2)
    assert played.exit_code != 0
    assert {host: counts["failed"] for host, counts in played.recap.items()} == {"n1": 0, "n2": 1, "n3": 0}


def test_uninstalling_leaves_nothing(fleet: Control) -> None:
    played = fleet.play("uninstall", rbee_uninstall_purge=True)
    assert played.exit_code == 0, played.output
    for host in HOSTS:
        assert differences(before[host], fleet.lab.snapshot(host)) == []
