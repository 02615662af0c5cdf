"""The end of a hive: the cascade, its escalation, sudden death, and that cycles leave nothing behind."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rbee.core.clock import parse_utc
from support.daemons import wait_until
from support.hives import HiveNode, ask_worker
from support.processes import arguments, is_alive

Start = Callable[..., HiveNode]


def journal_rows(hive: HiveNode) -> list[tuple[object, ...]]:
    path = hive.home / ".rbee" / "workers.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT worker_id, hive_port, pid, port FROM worker_pids").fetchall()
    database.close()
    return rows


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_workers_are_asked_at_once_and_the_hive_ends_after_them(
    start_hive: Start, model: str, number: int
) -> None:
    hive = start_hive(worker="--drain-s 0.5")
    workers = [hive.idle_worker(model) for _ in range(3)]
    assert len(journal_rows(hive)) == 3
    begun = time.monotonic()
    assert hive.running.stop(number) == 0
    assert time.monotonic() - begun < 6
    asked = [hive.worker_requests(w["worker_id"], "POST", "/v1/admin/shutdown") for w in workers]
    assert [len(requests) for requests in asked] == [1, 1, 1]
    assert [requests[0]["status"] for requests in asked] == [202, 202, 202]
    times = [parse_utc(requests[0]["timestamp"]) for requests in asked]
    assert max(times) - min(times) < 1
    assert [line["message"] for line in hive.log("shutdown_progress")] == [
        f"{n}/3 workers ended" for n in (1, 2, 3)
    ]
    assert [line["exit_status"] for line in hive.log("worker_ended")] == [0, 0, 0]
    assert hive.log("forced_kill") == []
    assert journal_rows(hive) == []
    assert all(is_free(int(w["url"].rsplit(":", 1)[1])) for w in workers)
    with sqlite3.connect(hive.home / ".rbee" / "models.db") as catalog:
        assert catalog.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    catalog.close()


def test_a_running_request_is_finished_and_new_work_is_refused_meanwhile(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(worker="--drain-s 1.5")
    spawned = hive.idle_worker(model)
    os.kill(hive.running.pid, signal.SIGTERM)
    wait_until(lambda: hive.call("GET", "/health/ready").status_code == 503, 5, "not ready")
    refused = hive.call("POST", "/v1/workers/spawn", {"model_ref": model})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert hive.workers()[0]["state"] == "draining"
    assert hive.running.process.wait(10) == 0
    assert hive.log("worker_ended", worker_id=spawned["worker_id"])[0]["exit_status"] == 0


def test_a_stopped_worker_is_killed_after_its_time_and_the_others_are_not(
    start_hive: Start, model: str
) -> None:
    hive = start_hive()
    workers = [hive.idle_worker(model) for _ in range(3)]
    pids = {worker["id"]: worker["pid"] for worker in hive.workers()}
    stopped = workers[1]["worker_id"]
    os.kill(pids[stopped], signal.SIGSTOP)
    begun = time.monotonic()
    assert hive.running.stop() == 0
    assert 2 <= time.monotonic() - begun < 5
    kills = hive.log("forced_kill")
    assert [(k["worker_id"], k["pid"], k["signal"]) for k in kills] == [
        (stopped, pids[stopped], "SIGTERM"),
        (stopped, pids[stopped], "SIGKILL"),
    ]
    assert all(kill["reason"] and kill["timestamp"] for kill in kills)


def test_a_worker_that_drains_too_long_is_killed_when_the_hives_time_is_over(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(worker="--drain-s 600 --with-child", timing={"hive_shutdown_timeout_s": 3})
    hive.idle_worker(model)
    begun = time.monotonic()
    assert hive.running.stop() == 0
    assert 2.9 <= time.monotonic() - begun < 5
    assert [kill["signal"] for kill in hive.log("forced_kill")] == ["SIGKILL"]


def test_a_worker_that_ignores_everything_but_sigkill_is_ended(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--ignore-shutdown --ignore-term")
    spawned = hive.idle_worker(model)
    hive.call("DELETE", f"/v1/workers/{spawned['worker_id']}")
    hive.wait_gone(spawned["worker_id"], 8)
    assert [kill["signal"] for kill in hive.log("forced_kill")] == ["SIGTERM", "SIGKILL"]


def test_a_hive_that_ends_while_a_worker_starts_leaves_no_process(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--no-http")
    hive.spawn(model)
    wait_until(lambda: journal_rows(hive), 10, "the process")
    assert hive.running.stop() == 0
    assert hive.processes() == []


@pytest.mark.parametrize("victim", ["daemon", "serving"])
def test_workers_die_with_a_hive_that_is_killed_and_the_next_one_starts_clean(
    start_hive: Start, model: str, victim: str
) -> None:
    hive = start_hive(worker="--with-child")
    hive.idle_worker(model)
    (worker,) = hive.workers()
    port = hive.running.port
    os.kill(hive.running.pid if victim == "daemon" else hive.serving_pid, signal.SIGKILL)
    hive.running.process.wait(10)
    wait_until(lambda: not is_alive(worker["pid"]), 5, "the worker gone")
    assert len(journal_rows(hive)) == 1
    hive.start(port)
    assert hive.workers() == []
    assert journal_rows(hive) == []
    wait_until(
        lambda: not [p for p in hive.processes() if "time.sleep" in " ".join(arguments(p))], 5, "child gone"
    )


def test_an_orphan_in_the_journal_is_ended_and_a_reused_pid_is_not(start_hive: Start, tmp_path: Path) -> None:
    import subprocess
    import sys

    hive = start_hive()
    port = hive.running.port
    assert hive.running.stop() == 0
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    orphan, stranger = (subprocess.Popen(sleeper, start_new_session=True) for _ in range(2))
    try:
        rows = [
            ("worker-orphan", port, orphan.pid, psutil.Process(orphan.pid).create_time(), 8001, 1),
            ("worker-stranger", port, stranger.pid, psutil.Process(stranger.pid).create_time() - 50, 8002, 2),
            ("worker-elsewhere", port + 1, stranger.pid, psutil.Process(stranger.pid).create_time(), 8003, 3),
        ]
        with sqlite3.connect(hive.home / ".rbee" / "workers.db") as database:
            database.executemany("INSERT INTO worker_pids VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.close()
        hive.start(port)
        assert orphan.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
        assert [row[0] for row in journal_rows(hive)] == ["worker-elsewhere"]
        assert hive.log("forced_kill", worker_id="worker-orphan")[0]["pid"] == orphan.pid
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.wait()


def test_a_damaged_journal_is_moved_aside(start_hive: Start, tmp_path: Path) -> None:
    home = tmp_path / "node1"
    (home / ".rbee").mkdir(parents=True)
    (home / ".rbee" / "workers.db").write_bytes(b"not a database" * 1000)
    hive = start_hive()
    assert (home / ".rbee" / "workers.db.corrupt.backup").exists()
    assert hive.log("database_moved_aside")
    assert journal_rows(hive) == []


def test_two_hundred_workers_share_a_few_ports_and_leave_nothing(start_hive: Start, model: str) -> None:
    wave, waves, ports_of_hive = 10, 20, 20
    hive = start_hive()
    ports: list[str] = []

    def run_wave() -> None:
        with concurrent.futures.ThreadPoolExecutor(wave) as pool:
            spawned = list(pool.map(lambda _: hive.spawn(model), range(wave)))
        ports.extend(worker["url"].rsplit(":", 1)[1] for worker in spawned)
        wait_until(lambda: {w["state"] for w in hive.workers()} == {"idle"}, 30, "all idle")
        held = ask_worker(
            spawned[0], "POST", "/v1/inference", {"request_id": "r", "prompt": "x"}, stream=True
        )
        for number, worker in enumerate(hive.workers()):
            if number % 3 == 0:
                hive.call("DELETE", f"/v1/workers/{worker['id']}")
            else:
                os.kill(worker["pid"], signal.SIGKILL if number % 3 == 1 else signal.SIGTERM)
        held.close()
        wait_until(lambda: hive.workers() == [], 20, "no worker")

    run_wave()
    serving = psutil.Process(hive.serving_pid)
    before, memory = hive.open_files(), serving.memory_info().rss
    for _ in range(waves - 1):
        run_wave()
    assert len(ports) == wave * waves
    assert len(set(ports)) <= ports_of_hive
    wait_until(lambda: hive.open_files() <= before, 5, f"{before} descriptors, now {hive.open_files()}")
    assert serving.children() == []
    assert list((hive.home / ".rbee" / "run").glob("*.key")) == []
    assert journal_rows(hive) == []
    assert serving.memory_info().rss - memory < 16 * 1024 * 1024
