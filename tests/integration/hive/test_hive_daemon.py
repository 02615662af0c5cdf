"""The hive as a program: start, refusals, keys, lease, commands, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemons import environment, wait_until
from support.hives import FLEET_KEY, HiveNode

Start = Callable[..., HiveNode]


def run(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rbee.hive", *args],
        env=environment(home, env),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_version_is_printed_without_loading_the_hive(tmp_path: Path) -> None:
    ended = run(tmp_path, "--version")
    assert ended.stdout == "rbee-hive 0.1.0\n"
    assert ended.returncode == 0
    assert not (tmp_path / ".rbee").exists()


@pytest.mark.parametrize("args", [["fly"], ["models"], ["--port", "70000"], ["--nonsense"]])
def test_wrong_usage_is_exit_2(tmp_path: Path, args: list[str]) -> None:
    assert run(tmp_path, *args).returncode == 2


def test_without_a_key_a_hive_listens_on_loopback_only(tmp_path: Path) -> None:
    ended = run(tmp_path, "--addr", "0.0.0.0:0")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: 0.0.0.0 is not a loopback address and no API key is configured")
    assert "listening" not in ended.stdout


def test_a_taken_port_is_told_by_name(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        ended = run(tmp_path, "daemon", "--port", str(port))
    assert ended.returncode == 1
    assert f"Error: cannot listen on 127.0.0.1:{port}" in ended.stderr


@pytest.mark.parametrize("mode", [0o640, 0o644])
def test_a_key_file_that_others_can_read_stops_the_start(tmp_path: Path, mode: int) -> None:
    key_file, config = tmp_path / "key", tmp_path / "config.toml"
    key_file.write_text(FLEET_KEY)
    key_file.chmod(mode)
    config.write_text(f'[auth]\napi_key_file = "{key_file}"\n')
    ended = run(tmp_path, "--config", str(config), "--port", "0")
    assert ended.returncode == 1
    assert str(key_file) in ended.stderr
    assert FLEET_KEY not in ended.stderr


def test_an_unknown_setting_names_file_and_key(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[pool]\nworker_prot_min = 8001\n")
    ended = run(tmp_path, "--config", str(config))
    assert ended.returncode == 1
    assert str(config) in ended.stderr
    assert "pool.worker_prot_min" in ended.stderr


def test_a_hive_tells_who_it_is(start_hive: Start) -> None:
    hive = start_hive()
    assert hive.call("GET", "/v1/health").json() == {
        "status": "alive",
        "version": "0.1.0",
        "api_version": "v1",
        "service": "rbee-hive",
        "node": "testnode",
        "owner": "operator",
        "pid": hive.running.pid,
    }
    assert hive.call("GET", "/health/live").json() == {"status": "alive"}
    assert hive.call("GET", "/health/ready").json() == {"status": "ready"}
    assert hive.call("GET", "/v1/workers/list").json() == {"workers": []}


def test_health_is_public_but_not_for_a_wrong_key_and_all_else_needs_the_key(start_hive: Start) -> None:
    hive = start_hive()
    assert hive.call("GET", "/v1/health", key=None).status_code == 200
    wrong = hive.call("GET", "/v1/health", key="wrong-key-wrong-key")
    assert wrong.status_code == 401
    assert wrong.headers["WWW-Authenticate"] == "Bearer"
    for method, path in (
        ("GET", "/v1/workers/list"),
        ("POST", "/v1/workers/spawn"),
        ("POST", "/v1/workers/ready"),
        ("DELETE", "/v1/workers/worker-1"),
        ("GET", "/v1/workers/worker-1/narration"),
        ("POST", "/v1/lease"),
        ("POST", "/v1/admin/shutdown"),
        ("GET", "/v1/capabilities"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
    ):
        answer = hive.call(method, path, {} if method == "POST" else None, key=None)
        expected = (400, 401) if path == "/v1/workers/ready" else (401,)
        assert answer.status_code in expected, path
    assert FLEET_KEY not in (hive.home / ".rbee" / "logs" / "rbee-hive.log").read_text()


def test_a_hangup_takes_a_new_key_and_a_bad_file_keeps_the_old_one(tmp_path: Path) -> None:
    key_file, second = tmp_path / "key", "second-key-0123456789"
    key_file.write_text(FLEET_KEY)
    key_file.chmod(0o600)
    node = HiveNode(tmp_path / "node", key=None, config={"auth": {"api_key_file": str(key_file)}})
    with node as hive:
        key_file.write_text(second)
        os.kill(hive.running.pid, signal.SIGHUP)
        wait_until(lambda: hive.call("GET", "/v1/models", key=second).status_code == 200, 5, "the new key")
        assert hive.call("GET", "/v1/models", key=FLEET_KEY).status_code == 401
        key_file.chmod(0o644)
        os.kill(hive.running.pid, signal.SIGHUP)
        wait_until(lambda: hive.log("key_not_reloaded"), 5, "the refusal")
        assert hive.call("GET", "/v1/models", key=second).status_code == 200


# Ownership


def test_the_owner_renews_its_lease_and_nobody_else(start_hive: Start) -> None:
    hive = start_hive(owner="queen-1")
    assert hive.call("GET", "/v1/health").json()["owner"] == "queen-1"
    renewed = hive.call("POST", "/v1/lease", {"owner": "queen-1", "ttl_seconds": 60}).json()
    assert renewed["owner"] == "queen-1"
    assert abs(renewed["expires_unix"] - time.time() - 60) < 5
    refused = hive.call("POST", "/v1/lease", {"owner": "queen-2", "ttl_seconds": 60})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "LEASE_HELD"
    assert refused.json()["error"]["details"] == {"owner": "queen-1"}


def test_a_hive_of_the_operator_gives_no_lease(start_hive: Start) -> None:
    refused = start_hive().call("POST", "/v1/lease", {"owner": "queen-1", "ttl_seconds": 60})
    assert refused.status_code == 409
    assert refused.json()["error"]["details"] == {"owner": "operator"}


def test_a_hive_whose_lease_runs_out_ends_itself_and_its_workers(start_hive: Start, model: str) -> None:
    hive = start_hive(owner="queen-1", timing={"lease_ttl_s": 3})
    worker = hive.idle_worker(model)
    hive.call("POST", "/v1/lease", {"owner": "queen-1", "ttl_seconds": 1})
    assert hive.running.process.wait(15) == 0
    assert hive.log("lease_expired")[0]["owner"] == "queen-1"
    assert hive.log("worker_ended")[0]["worker_id"] == worker["worker_id"]
    assert list(hive.processes()) == []


# End


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_hive_ends_at_once_with_status_0(start_hive: Start, number: int) -> None:
    hive = start_hive()
    begun = time.monotonic()
    assert hive.running.stop(number) == 0
    assert time.monotonic() - begun < 5


def test_a_hive_can_be_ended_over_http(start_hive: Start) -> None:
    hive = start_hive()
    answer = hive.call("POST", "/v1/admin/shutdown")
    assert answer.status_code == 202
    assert answer.json() == {"status": "shutting_down"}
    assert hive.running.process.wait(10) == 0


# Commands


def test_the_commands_show_the_hive_that_runs_here(start_hive: Start, model: str) -> None:
    hive = start_hive()
    worker = hive.idle_worker(model)

    def command(*words: str) -> object:
        ended = subprocess.run(
            [sys.executable, "-m", "rbee.hive", *words, "--port", str(hive.running.port)],
            env=hive.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    status = command("status")
    assert isinstance(status, dict)
    assert (status["service"], status["pid"]) == ("rbee-hive", hive.running.pid)
    listed = command("workers", "list")
    assert isinstance(listed, dict)
    assert [w["id"] for w in listed["workers"]] == [worker["worker_id"]]
    models = command("models", "list")
    assert isinstance(models, dict)
    assert [m["model_ref"] for m in models["models"]] == [model]
    detected = command("detect")
    assert isinstance(detected, dict)
    assert detected["node"] == "testnode"
    assert detected["devices"]["cpu"] == 1
    assert detected["model_sizes"] == {m["model_ref"]: m["size_bytes"] for m in models["models"]}
    assert command("workers", "cleanup") == {"ended": []}
    assert hive.worker(worker["worker_id"]) is not None
    assert command("workers", "stop-all") == {"ended": [worker["worker_id"]]}
    assert hive.workers() == []


def test_commands_without_a_hive_fail_with_its_address(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    for words in (["status"], ["models", "list"], ["workers", "list"], ["workers", "stop-all"]):
        ended = run(tmp_path, *words, "--port", str(port))
        assert ended.returncode == 1
        assert f"Error: no hive answers at http://127.0.0.1:{port}" in ended.stderr
