"""The queen and the real hive of this machine: started on demand, once, owned, ended with the queen."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from support.daemons import wait_until
from support.hives import HiveNode, ctranslate2_folder
from support.processes import arguments, children, is_alive, with_variable
from support.queens import TIMING, QueenUnderTest, start_queen
from support.scripted import OpenTask, ScriptedHive, free_port, run_task, wait_for_request


def hives_below(queen: QueenUnderTest) -> list[psutil.Process]:
    """Hive daemons the queen has started (the process signals go to, not the one that serves)."""
    hives = {process.pid: process for process in processes_of(queen) if _is_hive(process)}
    return [p for p in hives.values() if not any(p in children(pid) for pid in hives)]


def processes_of(queen: QueenUnderTest) -> list[psutil.Process]:
    """Every process that carries this queen's home in its environment."""
    return with_variable("RBEE_HOME", queen.home / ".rbee")


def _is_hive(process: psutil.Process | None) -> bool:
    words = " ".join(arguments(process))
    return "rbee-hive" in words or "rbee.hive" in words


def kill(queen: QueenUnderTest) -> None:
    """End the queen as the kernel's memory killer would, and nothing below it."""
    served_by = [p for p in children(queen.daemon.pid) if not _is_hive(p)]
    queen.daemon.process.kill()
    queen.daemon.process.wait(5)
    for process in served_by:
        process.wait(5)


def models(queen: QueenUnderTest) -> requests.Response:
    """A request that needs a hive and is quick."""
    return requests.get(f"{queen.url}/v2/models/list", timeout=30)


def health(queen: QueenUnderTest, port: int | None = None) -> dict[str, Any]:
    return requests.get(f"http://127.0.0.1:{port or queen.hive_port}/v1/health", timeout=5).json()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path)
    with running.daemon:
        yield running
    wait_until(lambda: not processes_of(running), 10, "nothing left")


def test_requests_that_need_a_hive_start_one_between_them(queen: QueenUnderTest) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: models(queen), range(4)))
    assert [a.json() for a in answers] == [{"models": []}] * 4
    assert len(hives_below(queen)) == 1
    assert health(queen)["owner"] == queen.identity
    assert health(queen)["pid"] == hives_below(queen)[0].pid
    assert "rbee_queen_hives_owned 1.0" in requests.get(f"{queen.url}/metrics", timeout=5).text


def test_lists_of_workers_start_no_hive(queen: QueenUnderTest) -> None:
    listed = requests.get(f"{queen.url}/v2/workers/list", timeout=5).json()
    assert listed == {"workers": [], "unreachable": []}
    probed = requests.get(f"{queen.url}/v2/workers/health", timeout=5).json()
    assert probed == {"status": "ok", "workers": []}
    assert not hives_below(queen)


def test_the_hive_is_in_a_session_of_its_own(queen: QueenUnderTest) -> None:
    models(queen)
    hive = hives_below(queen)[0]
    session = (Path("/proc") / str(hive.pid) / "stat").read_text().rpartition(")")[2].split()[3]
    assert int(session) == hive.pid


def test_the_first_task_tells_of_a_hive_that_was_started_beside_the_queen(tmp_path: Path) -> None:
    port = free_port()
    queen = start_queen(tmp_path, "--prestart-hive", str(port), hive_port=port)
    with queen.daemon:
        wait_until(lambda: is_listening(port), 15, "the hive")
        missing = {"prompt": "hi", "model": "file:/nowhere/model.gguf"}
        first, second = run_task(queen.url, missing), run_task(queen.url, missing)
    told = ["Starting rbee-hive on localhost", "rbee-hive is ready on localhost"]
    assert first.narrated("hive_start") == told
    assert second.narrated("hive_start") == []


def test_a_hive_that_was_killed_is_started_again_for_the_next_request(queen: QueenUnderTest) -> None:
    models(queen)
    first = hives_below(queen)[0]
    first.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(first.pid), 5)
    assert models(queen).json() == {"models": []}
    assert health(queen)["pid"] != first.pid


def test_a_task_whose_hive_dies_before_its_worker_is_found_goes_on_with_a_new_one(
    queen: QueenUnderTest, tmp_path: Path
) -> None:
    with ScriptedHive(tmp_path / "dying", port=queen.hive_port, list_delay_s=10) as dying:
        task = OpenTask(queen.url, {"prompt": "x", "model": "file:/no/such.gguf"})
        wait_for_request(dying, "/v1/workers/list", "GET")
        dying.process.kill()
        answer = task.read_to_end()
    # The answer of a real hive.
    assert answer.error["code"] == "MODEL_NOT_FOUND"
    assert "connecting once more" in " ".join(answer.narrated("retry"))
    assert health(queen)["owner"] == queen.identity


def test_a_hive_that_is_shutting_down_is_waited_for_and_a_new_one_started(
    queen: QueenUnderTest, tmp_path: Path
) -> None:
    ending = HiveNode(tmp_path / "ending", worker="--drain-s 1.5", key=None)
    ending.start(queen.hive_port)
    try:
        ending.idle_worker(ctranslate2_folder(tmp_path / "model"))
        ending.running.process.terminate()
        wait_until(lambda: health(queen)["status"] == "stopping", 5, "the end has begun")
        answer = run_task(queen.url, {"prompt": "x", "model": "file:/no/such.gguf"})
    finally:
        ending.__exit__(None, None, None)
    assert answer.error["code"] == "MODEL_NOT_FOUND"
    assert answer.narrated("health_check") == ["Waiting for the rbee-hive on localhost that is shutting down"]
    assert health(queen)["owner"] == queen.identity


def test_another_program_on_the_port_moves_the_hive_to_a_free_one(
    queen: QueenUnderTest, tmp_path: Path
) -> None:
    with ScriptedHive(tmp_path, port=queen.hive_port, service="something-else") as other:
        assert models(queen).json() == {"models": []}
        node = requests.get(f"{queen.url}/v2/registry/beehives/localhost", timeout=5).json()
        assert node["hive_port"] != queen.hive_port
        assert health(queen, node["hive_port"])["owner"] == queen.identity
        assert {r["path"] for r in other.requests()} == {"/v1/health"}


def test_sigterm_ends_the_hive_before_the_queen_exits(queen: QueenUnderTest) -> None:
    models(queen)
    hive = hives_below(queen)[0]
    assert queen.daemon.stop() == 0
    assert not hive.is_running()


def test_a_hive_that_hangs_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    queen = start_queen(tmp_path, timing=f"{TIMING}\nqueen_shutdown_timeout_s = 1")
    with queen.daemon:
        models(queen)
        hive = hives_below(queen)[0]
        hive.send_signal(signal.SIGSTOP)
        for below in hive.children(recursive=True):
            below.send_signal(signal.SIGSTOP)
        assert queen.daemon.stop() == 0
        assert "hive_killed" in queen.log
    assert not hive.is_running()
    wait_until(lambda: not processes_of(queen), 10, "nothing left")


def test_a_hive_whose_queen_was_killed_ends_with_its_lease(tmp_path: Path) -> None:
    queen = start_queen(tmp_path, timing=f"{TIMING}\nlease_ttl_s = 1")
    with queen.daemon:
        models(queen)
        hive = hives_below(queen)[0]
        kill(queen)
        wait_until(lambda: not hive.is_running(), 10, "the end of the hive")
    wait_until(lambda: not processes_of(queen), 10, "nothing left")


def test_a_restarted_queen_resumes_the_lease_and_ends_the_hive(tmp_path: Path) -> None:
    queen = start_queen(tmp_path)
    with queen.daemon:
        models(queen)
        hive = hives_below(queen)[0]
        kill(queen)
        again = start_queen(tmp_path, hive_port=queen.hive_port)
        with again.daemon:
            owned = "rbee_queen_hives_owned 1.0"
            metrics = f"{again.url}/metrics"
            wait_until(lambda: owned in requests.get(metrics, timeout=5).text, 5, "the resumed lease")
            assert health(again)["pid"] == hive.pid
        wait_until(lambda: not hive.is_running(), 5, "the end of the hive")
    wait_until(lambda: not processes_of(again), 10, "nothing left")


def test_a_hive_that_cannot_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / ".rbee" / "logs" / "rbee-hive.log").mkdir(parents=True)
    (tmp_path / ".rbee").chmod(0o700)
    queen = start_queen(tmp_path)
    with queen.daemon:
        error = run_task(queen.url, {"prompt": "hi"}).error
    assert error["code"] == "HIVE_START_FAILED"
    assert error["details"]["host"] == "127.0.0.1"
    assert "exited with status 1" in error["details"]["reason"]


def test_a_fleet_with_a_key_works_and_the_key_is_in_no_argument(tmp_path: Path) -> None:
    key = "fleet-key-0123456789"
    queen = start_queen(tmp_path, env={"RBEE_API_KEY": key})
    with queen.daemon:
        headers = {"Authorization": f"Bearer {key}"}
        answer = requests.get(f"{queen.url}/v2/models/list", headers=headers, timeout=30)
        assert answer.json() == {"models": []}
        assert not any(key in " ".join(p.cmdline()) for p in processes_of(queen))
    logs = "".join(f.read_text() for f in (tmp_path / ".rbee" / "logs").iterdir())
    assert key not in logs
