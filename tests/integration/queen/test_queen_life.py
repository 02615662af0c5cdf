"""The queen as a process: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests

from rbee.queen.adapters.sqlite_nodes import SqliteNodes
from support.daemons import Daemon, environment, wait_until
from support.queens import start_queen, write_config
from support.scripted import OpenTask, ScriptedHive, TaskAnswer, free_port, run_task

MODEL = "file:/models/m.gguf"
TASK = {"prompt": "write about bees", "model": MODEL}
KEY = "fleet-key-0123456789"


def refused(home: Path, *args: str, env: dict[str, str] | None = None) -> str:
    """Standard error of a queen that must not start."""
    ended = subprocess.run(
        [sys.executable, "-m", "rbee.queen", *args],
        env=environment(home, env),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: ")
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rbee.queen", "--version"]
    told = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=20)
    assert (told.returncode, told.stdout) == (0, "queen-rbee 0.1.0\n")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:0"])
def test_an_open_address_is_refused_without_a_key(tmp_path: Path, address: str) -> None:
    assert "no API key is configured" in refused(tmp_path, "--addr", address)


def test_an_open_address_is_served_with_a_key(tmp_path: Path) -> None:
    queen = start_queen(tmp_path, "--addr", "0.0.0.0:0", env={"RBEE_API_KEY": KEY})
    with queen.daemon:
        url = f"http://127.0.0.1:{queen.daemon.port}"
        assert requests.get(f"{url}/v2/workers/list", timeout=5).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        assert requests.get(f"{url}/v2/workers/list", headers=headers, timeout=5).status_code == 200


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(tmp_path, "--port", str(port))


def test_a_bad_config_names_file_and_key(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[queen]\nmax_pending = 'many'\n")
    told = refused(tmp_path, "-c", str(config))
    assert str(config) in told
    assert "queen.max_pending" in told


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o644)
    config = write_config(tmp_path, free_port())
    config.write_text(config.read_text() + f"[auth]\napi_key_file = '{key}'\n")
    assert "too open" in refused(tmp_path, "-c", str(config))


def test_the_identity_outlives_the_queen_and_is_private(tmp_path: Path) -> None:
    identities = []
    for _ in range(2):
        with start_queen(tmp_path).daemon:
            file = tmp_path / ".rbee" / "queen.id"
            identities.append(file.read_text())
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert identities[0] == identities[1]
    assert stat.S_IMODE((tmp_path / ".rbee").stat().st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_tasks_finish_and_refuses_new_ones(tmp_path: Path, number: int) -> None:
    queen = start_queen(tmp_path)
    peer = ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL], tokens=30, token_interval_s=0.02)
    with peer, queen.daemon:
        task = OpenTask(queen.url, TASK)
        task.read_until("bee1")
        ended: list[int] = []
        stopping = threading.Thread(target=lambda: ended.append(queen.daemon.stop(number)))
        stopping.start()
        wait_until(lambda: "draining" in queen.log, 5, "draining")
        late = requests.post(f"{queen.url}/v2/tasks", json=TASK, timeout=5)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
        answer = task.read_to_end()
        assert answer.terminal["done"] is True
        answer.assert_well_formed()
        stopping.join(10)
        assert ended == [0]


def test_a_task_that_outlasts_the_drain_ends_with_an_error(tmp_path: Path) -> None:
    queen = start_queen(tmp_path)
    peer = ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL], tokens=2000, token_interval_s=0.02)
    with peer, queen.daemon:
        task = OpenTask(queen.url, {**TASK, "max_tokens": 2000})
        task.read_until("bee1")
        answers: list[TaskAnswer] = []
        reading = threading.Thread(target=lambda: answers.append(task.read_to_end()))
        reading.start()
        assert queen.daemon.stop() == 0
        reading.join(5)
        assert answers[0].error["code"] == "SERVICE_UNAVAILABLE"
        assert peer.requests(f"/v1/inference/{task.request_id}", "DELETE")


def test_an_operators_hive_is_neither_leased_nor_ended(tmp_path: Path) -> None:
    queen = start_queen(tmp_path)
    with ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL], owner="operator") as peer:
        with queen.daemon:
            run_task(queen.url, TASK).assert_well_formed()
            time_of_renewals = 3 * 0.2
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > time_of_renewals, 5)
            assert not peer.requests("/v1/lease")
        assert peer.process.poll() is None


def test_a_hive_of_this_queen_is_leased_from_the_start_and_ended_with_it(tmp_path: Path) -> None:
    port = free_port()
    identity = "7a0f5f1e-44a2-4c5e-9f0b-0a5f9e2b7c11"
    (tmp_path / ".rbee").mkdir(mode=0o700, parents=True)
    (tmp_path / ".rbee" / "queen.id").write_text(identity + "\n")
    with ScriptedHive(tmp_path, port=port, owner=identity) as peer:
        with start_queen(tmp_path, hive_port=port).daemon:
            # No task names the node: the queen looked its hives up by itself.
            wait_until(lambda: len(peer.requests("/v1/lease")) >= 2, 5, "two renewals")
            assert peer.requests("/v1/lease")[0]["body"] == {"owner": identity, "ttl_seconds": 60}
        peer.process.wait(5)
        assert peer.process.returncode == -signal.SIGTERM


def start_ephemeral(home: Path) -> tuple[subprocess.Popen[str], str]:
    config = write_config(home, free_port())
    process = subprocess.Popen(
        [sys.executable, "-m", "rbee.queen", "--addr", "127.0.0.1:0", "-c", str(config), "--ephemeral"],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    match = re.search(r"listening on (\S+)", process.stdout.readline())
    assert match
    return process, match.group(1)


def test_an_ephemeral_queen_ends_by_itself_when_its_keeper_is_gone(tmp_path: Path) -> None:
    # Not the very first queen of this home, which also has its registry to make.
    SqliteNodes(tmp_path / ".rbee" / "beehives.db").close()
    process, url = start_ephemeral(tmp_path)
    try:
        assert requests.get(f"{url}/health", timeout=5).status_code == 200
        began = time.monotonic()
        # What the kernel does to the pipe when a keeper dies of SIGKILL.
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 2
    finally:
        process.kill()
        process.wait(5)
        assert process.stdout is not None
        process.stdout.close()


def test_an_ephemeral_queen_leaves_its_registry_behind(tmp_path: Path) -> None:
    process, _url = start_ephemeral(tmp_path)
    process.terminate()
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.wait(10) == 0
    process.stdin.close()
    process.stdout.close()
    with sqlite3.connect(tmp_path / ".rbee" / "beehives.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(beehives)")]
    database.close()
    assert columns == [
        "node_name",
        "ssh_host",
        "ssh_port",
        "ssh_user",
        "ssh_key_path",
        "git_repo_url",
        "git_branch",
        "install_path",
        "hive_port",
        "last_connected_unix",
        "last_error",
        "status",
        "backends",
        "devices",
    ]


def test_a_damaged_registry_is_moved_aside_and_told(tmp_path: Path) -> None:
    home = tmp_path / ".rbee"
    home.mkdir(mode=0o700)
    (home / "beehives.db").write_bytes(b"this is no database" * 100)
    queen = start_queen(tmp_path)
    with queen.daemon:
        nodes = requests.get(f"{queen.url}/v2/registry/beehives/list", timeout=5).json()["nodes"]
        assert [n["node_name"] for n in nodes] == ["localhost"]
        assert (home / "beehives.db.corrupt.backup").read_bytes().startswith(b"this is no database")
        assert "database_corrupt" in queen.log


def test_the_key_file_is_read_again_on_sighup_and_a_bad_one_is_not_taken(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    config = write_config(tmp_path, free_port())
    config.write_text(config.read_text() + f"[auth]\napi_key_file = '{key}'\n")
    options = ["--addr", "127.0.0.1:0", "-c", str(config)]
    with Daemon("queen-rbee", options, environment(tmp_path)) as daemon:

        def accepts(candidate: str) -> bool:
            headers = {"Authorization": f"Bearer {candidate}"}
            answer = requests.get(f"{daemon.url}/v2/workers/list", headers=headers, timeout=5)
            return answer.status_code == 200

        assert accepts(KEY)
        key.write_text("another-key-0123456789")
        psutil.Process(daemon.pid).send_signal(signal.SIGHUP)
        wait_until(lambda: accepts("another-key-0123456789"), 5, "the new key")
        assert not accepts(KEY)
        key.write_text("short")
        psutil.Process(daemon.pid).send_signal(signal.SIGHUP)
        log = tmp_path / ".rbee" / "logs" / "queen-rbee.log"
        wait_until(lambda: "key_reload_failed" in log.read_text(), 5, "the refusal")
        assert accepts("another-key-0123456789")
        assert KEY not in log.read_text()


def test_metrics_tell_tasks_and_errors(tmp_path: Path) -> None:
    queen = start_queen(tmp_path)
    with queen.daemon, ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL], crash_after=1):
        run_task(queen.url, TASK)
        text = requests.get(f"{queen.url}/metrics", timeout=5).text
    assert 'rbee_queen_tasks_total{outcome="failed"} 1.0' in text
    assert 'rbee_queen_errors_total{code="WORKER_CRASHED"} 1.0' in text
    assert 'rbee_queen_tasks_dispatched_total{outcome="reused"} 1.0' in text
    assert "rbee_queen_queue_depth 0.0" in text
    assert "rbee_queen_queue_capacity 3.0" in text
    assert "rbee_queen_hives_owned 0.0" in text
    assert "rbee_queen_scheduling_latency_ms_bucket" in text
