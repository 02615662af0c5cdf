"""Tasks without a node in a fleet of several: placed by what the hives say, with the reason told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from support.keeper import run_keeper
from support.queens import QueenUnderTest, start_queen
from support.scripted import OpenTask, ScriptedHive, free_port, run_task

MODEL = "file:/models/m.gguf"
SIZE = 5000 * 1024 * 1024


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path, env={"MOCK_SSH": "1"})
    with running.daemon:
        yield running


@pytest.fixture
def node(queen: QueenUnderTest, tmp_path: Path) -> Iterator[Callable[..., ScriptedHive]]:
    """Registers a node and runs a scripted hive there."""
    peers: list[ScriptedHive] = []

    def start(name: str, **script: Any) -> ScriptedHive:
        port = queen.hive_port if name == "localhost" else 0
        peer = ScriptedHive(tmp_path, port=port, **script)
        peers.append(peer)
        if name != "localhost":
            register(queen, name, peer.port)
        return peer

    yield start
    for peer in peers:
        peer.__exit__()


def register(queen: QueenUnderTest, name: str, port: int, host: str = "near.example") -> None:
    body = {"node_name": name, "ssh_host": host, "ssh_user": "u", "install_path": "/srv/none"}
    answer = requests.post(
        f"{queen.url}/v2/registry/beehives/add", json={**body, "hive_port": port}, timeout=10
    )
    assert answer.status_code == 200, answer.text


def plan(queen: QueenUnderTest, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = requests.post(
        f"{queen.url}/v2/plan", json={"model": MODEL, **body}, timeout=30
    ).json()
    return answer


def test_the_idle_worker_of_another_node_is_found_and_the_reason_is_told(queen, node) -> None:
    node("localhost", catalog={MODEL: SIZE})
    node("workstation", models=[MODEL])
    answer = run_task(queen.url, {"prompt": "hi", "model": MODEL})
    assert answer.named("started")[0]["node"] == "workstation"
    assert answer.narrated("preflight") == ["Placed on workstation: an idle worker has the model"]
    assert answer.terminal["done"] is True


def test_a_named_node_is_used_whatever_else_there_is(queen, node) -> None:
    node("localhost")
    node("workstation", models=[MODEL])
    answer = run_task(queen.url, {"prompt": "hi", "model": MODEL, "node": "localhost"})
    assert answer.named("started")[0]["node"] == "localhost"


def test_a_new_worker_goes_where_the_model_fits_best(queen, node) -> None:
    node("localhost", ram_mb=7000, catalog={"file:/other.gguf": 1})
    node("workstation", vram_mb=[6500, 24_000], ram_mb=64_000)
    node("small", ram_mb=4000)
    answer = run_task(queen.url, {"prompt": "hi", "model": MODEL})
    assert answer.named("started")[0]["node"] == "workstation"
    assert (
        answer.narrated("preflight")[0]
        == "Placed on workstation: fits on cuda:1, 24000 MB free, model size unknown"
    )


def test_a_node_that_is_down_does_not_keep_the_task(queen, node) -> None:
    node("localhost", models=[MODEL])
    dead = node("gone", models=[MODEL])
    dead.__exit__()
    answer = run_task(queen.url, {"prompt": "hi", "model": MODEL})
    assert answer.named("started")[0]["node"] == "localhost"


def test_a_plan_gives_a_verdict_for_every_node_in_numbers_and_starts_nothing(queen, node) -> None:
    stocked = node("localhost", ram_mb=7000, catalog={MODEL: SIZE})
    node("small", ram_mb=4000)
    node("workstation", vram_mb=[24_000], ram_mb=64_000)
    planned = plan(queen)
    assert planned == {
        "model": MODEL,
        "node": "localhost",
        "why": "nothing needs to be downloaded",
        "nodes": [
            {
                "node": "localhost",
                "fits": True,
                "reason": "fits on cpu:0, 6000 MB of 7000 MB free, has the model",
                "device": "cpu:0",
                "required_mb": 6000,
                "available_mb": 7000,
            },
            {
                "node": "small",
                "fits": False,
                "reason": "RAM 6000 MB required, 4000 MB available",
                "device": "cpu:0",
                "required_mb": 6000,
                "available_mb": 4000,
            },
            {
                "node": "workstation",
                "fits": True,
                "reason": "fits on cuda:0, 6000 MB of 24000 MB free",
                "device": "cuda:0",
                "required_mb": 6000,
                "available_mb": 24_000,
            },
        ],
    }
    assert not stocked.requests("/spawn")
    nowhere = plan(queen, backend="metal")
    assert (nowhere["node"], nowhere["why"]) == (None, "Backend 'metal' is not available")


def test_the_keeper_shows_the_plan_of_the_whole_fleet(queen, node, tmp_path: Path) -> None:
    node("localhost", ram_mb=4000, catalog={MODEL: SIZE})
    node("workstation", vram_mb=[24_000], ram_mb=64_000)
    home = tmp_path / "keeper"
    shown = run_keeper(home, "--queen-url", queen.url, "plan", "--model", MODEL)
    assert (shown.code, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        f"Model {MODEL}",
        "NODE         FITS  REASON",
        "localhost    no    RAM 6000 MB required, 4000 MB available",
        "workstation  yes   fits on cuda:0, 6000 MB of 24000 MB free",
        "Node 'workstation' would be chosen: the only node that fits",
    ]
    as_json = run_keeper(home, "--queen-url", queen.url, "plan", "--model", MODEL, "--json")
    assert json.loads(as_json.stdout) == plan(queen)
    nowhere = run_keeper(home, "--queen-url", queen.url, "plan", "--model", MODEL, "--backend", "metal")
    assert nowhere.code == 1
    assert nowhere.stdout.splitlines()[-1] == "No node fits: Backend 'metal' is not available"


def test_a_plan_without_a_model_is_for_the_default_one(queen, node) -> None:
    node("localhost", ram_mb=4000)
    answer = requests.post(f"{queen.url}/v2/plan", json={}, timeout=30).json()
    assert answer["model"].startswith("pypi:")
    assert "model size unknown" in answer["nodes"][0]["reason"]


def test_a_node_without_a_running_hive_is_asked_through_its_shell(queen, node) -> None:
    node("workstation", ram_mb=10)
    port = free_port()
    register(queen, "asleep", port)
    verdicts = {v["node"]: v for v in plan(queen)["nodes"]}
    # The transport runs the command on this very machine, which has a CPU and memory.
    assert verdicts["asleep"]["fits"] is True
    assert verdicts["asleep"]["device"] == "cpu:0"
    assert verdicts["asleep"]["available_mb"] > 100
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/v1/health", timeout=5)


def test_a_task_that_fits_nowhere_ends_with_the_numbers(queen, node) -> None:
    node("localhost", ram_mb=2000, catalog={MODEL: SIZE})
    node("small", ram_mb=4000)
    error = run_task(queen.url, {"prompt": "hi", "model": MODEL}).error
    assert error["code"] == "VRAM_EXHAUSTED"
    assert error["details"] == {"required": 6000, "available": 4000, "resource": "ram"}


def test_a_task_leaves_a_node_that_fails_after_it_was_chosen(queen, node) -> None:
    failure = {"code": "NOT_OUR_CODE", "message": "it broke", "details": {}}
    broken = node("broken", catalog={MODEL: SIZE}, ram_mb=64_000, spawn_error=failure, spawn_status=500)
    good = node("good", catalog={MODEL: SIZE}, ram_mb=32_000)
    answer = run_task(queen.url, {"prompt": "hi", "model": MODEL})
    assert broken.requests("/spawn")
    assert good.requests("/spawn")
    assert answer.terminal["done"] is True
    assert answer.named("started")[0]["node"] == "good"
    assert any("left for good" in line for line in answer.narrated("retry"))


def test_a_task_that_every_node_fails_ends_with_what_the_last_one_said(queen, node) -> None:
    failure = {"code": "NOT_OUR_CODE", "message": "it broke", "details": {}}
    script = {"catalog": {MODEL: SIZE}, "ram_mb": 64_000, "spawn_error": failure, "spawn_status": 500}
    node("one", **script)
    node("two", **script)
    requests.post(f"{queen.url}/v2/nodes/localhost/cordon", json={}, timeout=5)
    assert run_task(queen.url, {"prompt": "hi", "model": MODEL}).error["code"] == "BAD_HIVE_RESPONSE"


def test_a_task_does_not_wait_for_a_busy_worker_while_another_node_is_free(queen, node) -> None:
    node("busy", models=[MODEL], busy_answers=100)
    free = node("free", catalog={MODEL: SIZE}, ram_mb=64_000)
    requests.post(f"{queen.url}/v2/nodes/free/cordon", json={}, timeout=5)
    task = OpenTask(queen.url, {"prompt": "hi", "model": MODEL, "busy_retries": 10})
    task.read_until("retrying in")
    # In this order: a try in between must find a node.
    requests.post(f"{queen.url}/v2/nodes/free/uncordon", json={}, timeout=5)
    requests.post(f"{queen.url}/v2/nodes/busy/cordon", json={}, timeout=5)
    answer = task.read_to_end()
    assert answer.terminal["done"] is True, answer.events
    assert [event["node"] for event in answer.named("started")] == ["free"]
    assert "Moved to free: the worker on busy is busy" in answer.narrated("retry")
    assert free.worker_requests("/v1/inference")
