"""Nodes over real SSH: registered after a login, every failure told apart, hives started and ended there."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from support.daemons import wait_until
from support.nodes import HOST, add, fields, has_ended, hive_of, models_of, node_environment, post
from support.processes import arguments, with_state_below
from support.queens import TIMING, QueenUnderTest, start_queen
from support.scripted import ScriptedHive, free_port, run_task
from support.sshd import SshdMissing, SshNode, find_sshd, fingerprint, make_key


@pytest.fixture(scope="module", autouse=True)
def sshd_is_installed() -> None:
    try:
        find_sshd()
    except SshdMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys") / "id_ed25519")


@pytest.fixture(scope="module")
def queen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path_factory.mktemp("queen"))
    with running.daemon:
        yield running


@pytest.fixture
def node(tmp_path: Path, key: Path) -> Iterator[SshNode]:
    with SshNode(tmp_path / "node", [key], environment=node_environment(tmp_path), host=HOST) as running:
        yield running
    leftovers = with_state_below(tmp_path)
    for process in leftovers:
        process.kill()
    assert not leftovers


def row(queen: QueenUnderTest, name: str) -> dict[str, Any] | None:
    """The node's row, read from the database."""
    with closing(sqlite3.connect(f"file:{queen.home}/.rbee/beehives.db?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        found = database.execute("SELECT * FROM beehives WHERE node_name = ?", [name]).fetchone()
        return dict(found) if found else None


def test_a_node_is_stored_after_one_login_with_exactly_its_key(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    body = fields(node, key, "alpha", git_repo_url="https://example.org/rbee.git", backends=["cpu"])
    began = int(time.time())
    answer = post(queen, "add", body)
    assert answer.json() == {
        "success": True,
        "message": "Node 'alpha' added successfully",
        "node_name": "alpha",
    }
    assert node.logins == [(node.user, fingerprint(key.with_suffix(".pub")))]
    assert [c.command for c in node.commands] == ["echo 'connection test'"]
    stored = row(queen, "alpha")
    assert stored is not None
    assert {name: stored[name] for name in body if name != "backends"} == {
        name: value for name, value in body.items() if name != "backends"
    }
    assert stored["git_branch"] == "main"
    assert stored["backends"] == '["cpu"]'
    assert stored["status"] == "reachable"
    assert stored["last_connected_unix"] >= began
    shown = requests.get(f"{queen.url}/v2/registry/beehives/alpha", timeout=5).json()
    assert shown["builtin"] is False
    assert shown["backends"] == ["cpu"]


def test_a_taken_name_is_refused_before_any_login(queen: QueenUnderTest, node: SshNode, key: Path) -> None:
    add(queen, fields(node, key, "twice"))
    logins = len(node.commands)
    answer = post(queen, "add", fields(node, key, "twice"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "NODE_EXISTS")
    assert post(queen, "add", fields(node, key, "localhost")).status_code in (400, 409)
    assert len(node.commands) == logins


def test_nodes_that_are_added_at_the_same_time_are_all_there_in_order(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    names = [f"many-{i}" for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda n: post(queen, "add", fields(node, key, n)).status_code, names))
    assert codes == [200] * 4
    listed = requests.get(f"{queen.url}/v2/registry/beehives/list", timeout=20).json()["nodes"]
    assert listed[0]["node_name"] == "localhost"
    assert sorted(n["node_name"] for n in listed if n["node_name"].startswith("many-")) == names


def test_a_node_that_is_removed_is_gone_and_localhost_is_protected(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    add(queen, fields(node, key, "gone"))
    assert post(queen, "remove", {"node_name": "gone"}).json()["success"] is True
    assert row(queen, "gone") is None
    again = post(queen, "remove", {"node_name": "gone"})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "NODE_NOT_FOUND")
    builtin = post(queen, "remove", {"node_name": "localhost"})
    assert (builtin.status_code, builtin.json()["error"]["code"]) == (409, "NODE_PROTECTED")


def test_an_update_changes_what_it_names_after_another_login(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    add(queen, fields(node, key, "moved"))
    answer = post(queen, "update", {"node_name": "moved", "hive_port": 9999, "install_path": "~/rbee"})
    assert answer.status_code == 200
    stored = row(queen, "moved")
    assert stored is not None
    home = "/root" if node.user == "root" else f"/home/{node.user}"
    assert (stored["hive_port"], stored["install_path"]) == (9999, f"{home}/rbee")
    assert stored["ssh_port"] == node.port
    refused = post(queen, "update", {"node_name": "moved", "ssh_port": closed_port()})
    assert refused.json()["error"]["details"]["reason"] == "Connection refused"
    unchanged = row(queen, "moved")
    assert unchanged is not None
    assert unchanged["ssh_port"] == node.port
    assert post(queen, "update", {"node_name": "moved", "colour": "red"}).status_code == 400
    assert post(queen, "update", {"node_name": "nobody", "hive_port": 9999}).status_code == 404


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def refusal(queen: QueenUnderTest, body: dict[str, Any]) -> dict[str, Any]:
    """The error of an addition that must fail and leave nothing."""
    answer = post(queen, "add", body)
    assert answer.status_code == 502, answer.text
    assert row(queen, body["node_name"]) is None
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "SSH_CONNECTION_FAILED"
    assert error["details"]["host"] == body["ssh_host"]
    assert error["message"] == f"SSH connection failed: {error['details']['reason']}"
    return error


def test_a_closed_port_is_told_as_refused(queen: QueenUnderTest, node: SshNode, key: Path) -> None:
    error = refusal(queen, fields(node, key, "bad", ssh_port=closed_port()))
    assert error["details"]["reason"] == "Connection refused"


def test_a_silent_port_is_tried_three_times_with_growing_delays(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    seen: list[tuple[float, float]] = []
    with socket.create_server((HOST, 0)) as listener:

        def accept() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                came = time.monotonic()
                with connection:
                    while connection.recv(4096):
                        pass
                seen.append((came, time.monotonic()))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        error = refusal(queen, fields(node, key, "silent", ssh_port=listener.getsockname()[1]))
        thread.join(10)
    assert error["details"]["reason"] == "Connection timeout"
    assert len(seen) == 3
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(seen)]
    assert gaps[0] >= 0.05
    assert gaps[1] >= 0.1


def test_a_key_the_node_does_not_know_is_told_as_denied(
    queen: QueenUnderTest, node: SshNode, tmp_path: Path
) -> None:
    error = refusal(queen, fields(node, make_key(tmp_path / "stranger"), "bad"))
    assert error["details"]["reason"] == "Permission denied"
    assert "chmod 600" in error["suggestion"]


def test_a_changed_host_key_is_refused_and_the_advice_names_the_file(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    add(queen, fields(node, key, "trusted"))
    node.change_host_key()
    error = refusal(queen, fields(node, key, "impostor", ssh_user=node.user, ssh_key_path=str(copy_of(key))))
    assert error["details"]["reason"] == "Host key verification failed"
    assert "ssh-keygen -R" in error["suggestion"]


def copy_of(key: Path) -> Path:
    """The same key under another path, so that no kept connection is used."""
    copy = key.with_name(f"copy-{time.monotonic_ns()}")
    copy.write_bytes(key.read_bytes())
    copy.chmod(0o600)
    return copy


def test_a_name_that_does_not_exist_is_told(queen: QueenUnderTest, node: SshNode, key: Path) -> None:
    error = refusal(queen, fields(node, key, "bad", ssh_host="no-such-host.invalid"))
    assert error["details"]["reason"] == "Could not resolve hostname"


def test_a_key_file_that_is_missing_or_too_open_is_told_before_any_login(
    queen: QueenUnderTest, node: SshNode, key: Path
) -> None:
    missing = refusal(queen, fields(node, key, "bad", ssh_key_path="/no/such/key"))
    assert missing["details"]["reason"] == "Key file not found"
    open_key = copy_of(key)
    open_key.chmod(0o644)
    too_open = refusal(queen, fields(node, key, "bad", ssh_key_path=str(open_key)))
    assert too_open["details"]["reason"] == "Key file permissions too open"
    assert too_open["suggestion"] == f"Run: chmod 600 {open_key}"
    assert node.commands == []


def test_host_keys_are_kept_in_a_file_of_rbees_own(queen: QueenUnderTest, node: SshNode, key: Path) -> None:
    add(queen, fields(node, key, "known"))
    known = (queen.home / ".rbee" / "known_hosts").read_text()
    assert f"[{HOST}]:{node.port} " in known


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_name", "-Bad"),
        ("ssh_host", "-oProxyCommand=evil"),
        ("ssh_user", "-l"),
        ("ssh_key_path", "relative/key"),
        ("install_path", "/opt/$(reboot)"),
        ("hive_port", 80),
        ("git_branch", "--upload-pack=evil"),
    ],
)
def test_a_malformed_field_is_refused_and_named(
    queen: QueenUnderTest, node: SshNode, key: Path, field: str, value: object
) -> None:
    answer = post(queen, "add", fields(node, key, "bad", **{field: value}))
    assert answer.status_code == 400
    assert field in {e["field"] for e in answer.json()["error"]["details"]["errors"]}
    assert node.commands == []


# Hives on nodes


def test_a_hive_is_started_over_ssh_detached_owned_and_ended_with_the_queen(
    tmp_path: Path, node: SshNode, key: Path
) -> None:
    queen = start_queen(tmp_path / "queen")
    with queen.daemon:
        body = fields(node, key, "workstation")
        add(queen, body)
        assert models_of(queen, "workstation").json() == {"models": []}
        hive = hive_of(node)
        assert hive is not None
        health = requests.get(f"http://{HOST}:{body['hive_port']}/v1/health", timeout=5).json()
        assert (health["owner"], health["pid"]) == (queen.identity, hive.pid)
        started = [c.command for c in node.commands if " daemon " in c.command]
        program = "/srv/nothing-installed-here/current/bin/rbee-hive"
        options = f"--port {body['hive_port']} --owner {queen.identity} --worker-host {HOST}"
        assert len(started) == 1
        assert program in started[0]
        assert started[0].endswith(options)
        assert " ".join(arguments(hive)).endswith(f"rbee-hive daemon {options}")
        # Its own session: nothing that ends the login ends it.
        assert os.getsid(hive.pid) == hive.pid
        assert hive.parent() is None or hive.parent().pid not in {queen.daemon.pid}
        # One login served every command.
        assert len(node.logins) == 1
        metrics = requests.get(f"{queen.url}/metrics", timeout=5).text
        assert "rbee_queen_hives_owned 1.0" in metrics
        assert queen.daemon.stop() == 0
        assert has_ended(hive.pid)
    assert list((tmp_path / "queen" / ".rbee" / "run").iterdir()) == []


def test_the_configured_program_is_used_and_no_other(tmp_path: Path, node: SshNode, key: Path) -> None:
    program = tmp_path / "bin" / "my-rbee-hive"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {Path(sys.executable).parent}/python -m rbee.hive "$@"\n')
    program.chmod(0o755)
    queen = start_queen(tmp_path / "queen", extra=f"[remote]\nbinary_path = '{program}'")
    with queen.daemon:
        add(queen, fields(node, key, "n"))
        assert models_of(queen, "n").json() == {"models": []}
        program.unlink()
        queen.daemon.stop()
    with start_queen(tmp_path / "queen", extra=f"[remote]\nbinary_path = '{program}'").daemon as again:
        answer = requests.get(f"{again.url}/v2/models/list", params={"node": "n"}, timeout=30)
        error = answer.json()["error"]
    assert error["code"] == "HIVE_START_FAILED"
    assert error["details"]["reason"] == f"{program}: command not found"
    assert "rbee-keeper setup install" in error["suggestion"]


def test_a_hive_that_ends_at_once_is_told_with_its_own_words(
    tmp_path: Path, node: SshNode, key: Path
) -> None:
    config = tmp_path / "node" / "hive.toml"
    config.write_text("[pool]\nworker_port_min = 1\n")
    queen = start_queen(tmp_path / "queen")
    with queen.daemon:
        add(queen, fields(node, key, "n"))
        answer = run_task(queen.url, {"prompt": "hi", "node": "n"})
    assert answer.error["code"] == "HIVE_START_FAILED"
    assert "pool.worker_port_min" in answer.error["details"]["reason"]
    assert answer.narrated("hive_start") == ["Starting rbee-hive on n"]
    assert answer.narrated("ssh_connect")


def test_an_operators_hive_on_a_node_is_used_without_a_login_and_left_running(
    tmp_path: Path, node: SshNode, key: Path
) -> None:
    model = "file:/m.gguf"
    queen = start_queen(tmp_path / "queen")
    with queen.daemon, ScriptedHive(tmp_path, host=HOST, models=[model]) as peer:
        add(queen, fields(node, key, "n", hive_port=peer.port))
        before = row(queen, "n")
        assert before is not None
        commands = len(node.commands)
        answer = run_task(queen.url, {"prompt": "hi", "node": "n", "model": model})
        assert answer.named("started")[0]["node"] == "n"
        assert len(node.commands) == commands
        assert queen.daemon.stop() == 0
        assert peer.process.poll() is None


def test_a_killed_queen_loses_its_hives_with_their_lease(tmp_path: Path, node: SshNode, key: Path) -> None:
    queen = start_queen(tmp_path / "queen", timing=f"{TIMING}\nlease_ttl_s = 1")
    with queen.daemon:
        add(queen, fields(node, key, "n"))
        assert models_of(queen, "n").status_code == 200
        hive = hive_of(node)
        assert hive is not None
        time_of_renewal = "the first renewal"
        log = node.home / ".rbee" / "logs" / "rbee-hive.log"
        wait_until(lambda: "/v1/lease" in log.read_text(), 10, time_of_renewal)
        psutil.Process(queen.daemon.pid).send_signal(signal.SIGKILL)
        wait_until(lambda: has_ended(hive.pid), 15, "the end of the hive")


def test_the_list_tells_which_nodes_answer_now(tmp_path: Path, node: SshNode, key: Path) -> None:
    queen = start_queen(tmp_path / "queen")
    with queen.daemon, socket.create_server((HOST, 0)) as silent:
        add(queen, fields(node, key, "quiet", hive_port=silent.getsockname()[1]))
        add(queen, fields(node, key, "idle"))
        listed = requests.get(f"{queen.url}/v2/registry/beehives/list", timeout=20).json()["nodes"]
        states = {n["node_name"]: n["status"] for n in listed}
        assert states == {"localhost": "reachable", "quiet": "unreachable", "idle": "reachable"}
        workers = requests.get(f"{queen.url}/v2/workers/list", timeout=20).json()
        assert workers == {"workers": [], "unreachable": ["quiet"]}


def test_mock_ssh_runs_commands_here_and_fails_for_unreachable_hosts(tmp_path: Path) -> None:
    queen = start_queen(tmp_path, env={"MOCK_SSH": "1"})
    body = {"ssh_user": "somebody", "install_path": "/srv/none"}
    with queen.daemon:
        assert '"mock_ssh"' in queen.log
        port = free_port()
        add(queen, {**body, "node_name": "near", "ssh_host": "near.example", "hive_port": port})
        for host in ("unreachable.home.arpa", "node.invalid"):
            error = refusal(queen, {**body, "node_name": "far", "ssh_host": host})
            assert error["details"]["reason"] == "Connection timeout"
        assert models_of(queen, "near").json() == {"models": []}
        health = requests.get(f"http://127.0.0.1:{port}/v1/health", timeout=5).json()
        assert health["owner"] == queen.identity
    assert has_ended(health["pid"])


def test_an_unreachable_host_is_given_up_after_three_narrated_attempts(tmp_path: Path) -> None:
    # The node is in the registry although it cannot be reached now.
    start_queen(tmp_path).daemon.stop()
    with closing(sqlite3.connect(tmp_path / ".rbee" / "beehives.db")) as database, database:
        database.execute(
            "INSERT INTO beehives (node_name, ssh_host, ssh_user, install_path) VALUES (?, ?, ?, ?)",
            ["far", "unreachable.home.arpa", "u", "/srv/none"],
        )
    queen = start_queen(tmp_path, env={"MOCK_SSH": "1"}, timing="")
    with queen.daemon:
        answer = run_task(queen.url, {"prompt": "hi", "node": "far"})
        assert answer.narrated("retry") == [
            "Attempt 1: Connecting to unreachable.home.arpa:9200... (timeout 10s)",
            "Attempt 2: Connecting to unreachable.home.arpa:9200... (timeout 10s, delay 200ms)",
            "Attempt 3: Connecting to unreachable.home.arpa:9200... (timeout 10s, delay 400ms)",
        ]
        assert answer.error["message"] == "Cannot connect to unreachable.home.arpa:9200 after 3 attempts"
        assert answer.error["suggestion"] == "Check if rbee-hive is running on far"
        stored = row(queen, "far")
        assert stored is not None
        assert stored["status"] == "unreachable"
        assert stored["last_error"]
