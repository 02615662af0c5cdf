"""Nodes out of service: no new tasks, those under way go on, and a restarted queen still knows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from support.daemons import wait_until
from support.keeper import Outcome, run_keeper
from support.queens import QueenUnderTest, start_queen
from support.scripted import OpenTask, ScriptedHive, run_task

MODEL = "file:/models/m.gguf"
TASK = {"prompt": "hi", "model": MODEL}


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path)
    with running.daemon:
        yield running


def hive(queen: QueenUnderTest, tmp_path: Path, **script: Any) -> ScriptedHive:
    return ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL], **script)


def post(queen: QueenUnderTest, path: str, **body: Any) -> dict[str, Any]:
    answer = requests.post(f"{queen.url}/v2/{path}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def keeper(queen: QueenUnderTest, *args: str) -> Outcome:
    return run_keeper(queen.home, "--queen-url", queen.url, *args)


def test_a_cordoned_node_gets_no_task_and_says_why(queen: QueenUnderTest, tmp_path: Path) -> None:
    with hive(queen, tmp_path) as peer:
        assert run_task(queen.url, TASK).terminal["done"] is True
        state = post(queen, "nodes/localhost/cordon", reason="new disk")
        assert (state["cordoned"], state["reason"], state["open_tasks"]) == (True, "new disk", 0)
        unplaced = run_task(queen.url, TASK).error
        named = requests.post(f"{queen.url}/v2/tasks", json={**TASK, "node": "localhost"}, timeout=10)
        asked = len(peer.worker_requests("/v1/inference"))
    assert unplaced["code"] == named.json()["error"]["code"] == "NODE_CORDONED"
    assert named.status_code == 409
    assert named.json()["error"]["details"]["reason"] == "new disk"
    assert asked == 1


def test_an_uncordoned_node_takes_tasks_again(queen: QueenUnderTest, tmp_path: Path) -> None:
    with hive(queen, tmp_path):
        post(queen, "nodes/localhost/cordon")
        assert post(queen, "nodes/localhost/uncordon")["cordoned"] is False
        assert run_task(queen.url, TASK).terminal["done"] is True


def test_a_node_can_be_tried_while_it_takes_no_tasks(queen: QueenUnderTest, tmp_path: Path) -> None:
    with hive(queen, tmp_path):
        post(queen, "nodes/localhost/cordon")
        tried = run_task(queen.url, {**TASK, "node": "localhost", "ignore_cordon": True})
        by_keeper = keeper(
            queen, *("infer", "--node", "localhost", "--ignore-cordon", "--model", MODEL, "--prompt", "hi")
        )
    assert tried.terminal["done"] is True
    assert by_keeper.code == 0, by_keeper.stderr


def test_an_exception_for_no_node_in_particular_is_refused(queen: QueenUnderTest) -> None:
    answer = requests.post(f"{queen.url}/v2/tasks", json={**TASK, "ignore_cordon": True}, timeout=10)
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"


def test_tasks_under_way_go_on_and_draining_waits_for_them(queen: QueenUnderTest, tmp_path: Path) -> None:
    with hive(queen, tmp_path, tokens=40, token_interval_s=0.05):
        task = OpenTask(queen.url, TASK)
        task.read_until('"token"')
        drained: list[dict[str, Any]] = []
        waiting = threading.Thread(
            target=lambda: drained.append(post(queen, "nodes/localhost/drain", timeout_seconds=20))
        )
        waiting.start()
        state = wait_until(lambda: _cordoned(queen), 5, "the cordon")
        assert state["open_tasks"] == 1
        assert not drained
        assert task.read_to_end().terminal["total_tokens"] == 40
        waiting.join(20)
    assert drained[0]["drained"] is True
    assert drained[0]["open_tasks"] == drained[0]["busy_slots"] == 0


def _cordoned(queen: QueenUnderTest) -> dict[str, Any] | None:
    state: dict[str, Any] = requests.get(f"{queen.url}/v2/nodes/localhost", timeout=5).json()
    return state if state["cordoned"] else None


def test_a_drain_whose_time_is_over_says_what_still_runs(queen: QueenUnderTest, tmp_path: Path) -> None:
    with hive(queen, tmp_path, tokens=400, token_interval_s=0.05):
        task = OpenTask(queen.url, TASK)
        task.read_until('"token"')
        run = keeper(queen, "node", "drain", "localhost", "--timeout", "0.3", "--json")
        task.close()
    assert run.code == 1
    assert json.loads(run.stdout)["open_tasks"] == 1
    assert json.loads(run.stdout)["drained"] is False


def test_cordon_and_roll_out_survive_a_restart_of_the_queen(queen: QueenUnderTest, tmp_path: Path) -> None:
    post(queen, "nodes/localhost/cordon", reason="new disk")
    post(queen, "rollout", version="0.2.0", operator="maya")
    queen.daemon.stop()
    again = start_queen(tmp_path, hive_port=queen.hive_port)
    with again.daemon:
        shown = keeper(again, "node", "status")
        found = json.loads(keeper(again, "node", "status", "localhost", "--json").stdout)
        assert keeper(again, "node", "uncordon", "localhost").code == 0
    assert "takes no new tasks since" in shown.stdout
    assert "new disk" in shown.stdout
    assert "Roll-out of 0.2.0 by maya" in shown.stdout
    assert found["nodes"][0]["reason"] == "new disk"
    assert found["rollout"]["version"] == "0.2.0"


def test_a_roll_out_lets_neighbouring_versions_work_together(queen: QueenUnderTest, tmp_path: Path) -> None:
    with hive(queen, tmp_path, version="0.2.0"):
        before = run_task(queen.url, TASK).error
        post(queen, "rollout", version="0.2.0", operator="maya")
        during = run_task(queen.url, TASK).terminal
        assert requests.delete(f"{queen.url}/v2/rollout", timeout=5).status_code == 204
        after = run_task(queen.url, TASK).error
    assert before["code"] == after["code"] == "VERSION_MISMATCH"
    assert during["done"] is True


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("nodes/nobody/cordon", {}, "NODE_NOT_FOUND"),
        ("nodes/localhost/cordon", {"reason": "two\nlines"}, "INVALID_REQUEST"),
        ("nodes/localhost/drain", {"timeout_seconds": -1}, "INVALID_REQUEST"),
        ("rollout", {"version": "next", "operator": "maya"}, "INVALID_REQUEST"),
        ("rollout", {"version": "0.2.0"}, "INVALID_REQUEST"),
    ],
)
def test_what_makes_no_sense_is_refused(
    queen: QueenUnderTest, path: str, body: dict[str, Any], code: str
) -> None:
    answer = requests.post(f"{queen.url}/v2/{path}", json=body, timeout=10)
    assert answer.json()["error"]["code"] == code
