"""Workers over a hive's HTTP: spawn, list, narration, callback, end – with stand-in worker processes."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.daemons import wait_until
from support.hives import HiveNode, ask_worker
from support.tiny_ct2 import write_tiny_model

Start = Callable[..., HiveNode]


def error_of(answer: Any) -> dict[str, Any]:
    return dict(answer.json()["error"])


def test_a_spawn_answers_with_the_worker_and_its_key(hive: HiveNode, model: str) -> None:
    spawned = hive.spawn(model)
    assert set(spawned) == {
        "worker_id",
        "url",
        "state",
        "model_ref",
        "backend",
        "device",
        "api_key",
        "reused",
    }
    assert spawned["state"] == "loading"
    assert (spawned["backend"], spawned["device"]) == ("cpu", 0)
    assert spawned["reused"] is False
    record = hive.wait_state(spawned["worker_id"], "idle")
    assert set(record) == {
        "id",
        "url",
        "model_ref",
        "backend",
        "device",
        "state",
        "slots_total",
        "slots_available",
        "last_activity",
        "idle_since",
        "pid",
        "failed_health_checks",
        "log_path",
    }
    assert record["slots_available"] == 1
    assert record["url"] == spawned["url"]
    assert ask_worker(spawned, "GET", "/v1/ready").json()["ready"] is True
    everything = (hive.home / ".rbee" / "logs" / "rbee-hive.log").read_text()
    assert spawned["api_key"] not in everything


def test_the_process_has_its_flags_and_its_key_only_in_a_private_file(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    process = psutil.Process(hive.workers()[0]["pid"])
    command = process.cmdline()
    key_file = hive.home / ".rbee" / "run" / f"{spawned['worker_id']}.key"
    assert command[command.index("--api-key") + 1] == f"@{key_file}"
    assert command[command.index("--model-ref") + 1] == model
    assert command[command.index("--port") + 1] == spawned["url"].rsplit(":", 1)[1]
    assert spawned["api_key"] not in " ".join(command)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert "RBEE_API_KEY" not in process.environ()
    hive.call("DELETE", f"/v1/workers/{spawned['worker_id']}")
    hive.wait_gone(spawned["worker_id"])
    assert not key_file.exists()


def test_narration_is_told_from_the_beginning_and_ends_with_the_callback(hive: HiveNode, model: str) -> None:
    spawned = hive.spawn(model)
    path = f"/v1/workers/{spawned['worker_id']}/narration"
    during = hive.events(path)
    hive.wait_state(spawned["worker_id"], "idle")
    later = hive.events(path)
    assert during[-1] == later[-1] == ("", "[DONE]")
    actions = [data["action"] for name, data in during[:-1] if name == "narration"]
    assert actions[0] == "preflight"
    assert "worker_spawn" in actions
    assert later[: len(during) - 1] == during[:-1]


def test_a_live_worker_that_is_named_is_given_again(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    again = hive.call("POST", "/v1/workers/spawn", {"worker_id": spawned["worker_id"]}).json()
    assert again == {**spawned, "state": "idle", "reused": True}
    assert len(hive.workers()) == 1


def test_parallel_spawns_get_different_ports(hive: HiveNode, model: str) -> None:
    urls: list[str] = []
    threads = [
        threading.Thread(target=lambda: urls.append(_spawn_alone(hive, model)["url"])) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(urls)) == 5
    wait_until(lambda: [w["state"] for w in hive.workers()] == ["idle"] * 5, 20, "five idle workers")


def _spawn_alone(hive: HiveNode, model: str) -> dict[str, Any]:
    """A spawn over a connection of its own."""
    import requests

    answer = requests.post(
        hive.running.url + "/v1/workers/spawn",
        json={"model_ref": model},
        headers={"Authorization": f"Bearer {hive.key}"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_taken_port_is_skipped_and_without_a_free_one_the_spawn_fails(
    start_hive: Start, model: str
) -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        hive = start_hive(config={"pool": {"worker_port_min": port, "worker_port_max": port}})
        answer = hive.call("POST", "/v1/workers/spawn", {"model_ref": model})
        assert answer.status_code == 500
        assert error_of(answer)["code"] == "WORKER_START_FAILED"
        assert "no free port" in error_of(answer)["message"]
    assert hive.spawn(model)["url"] == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "INVALID_MODEL_REF"),
        ({"model_ref": "nonsense"}, 400, "INVALID_MODEL_REF"),
        ({"model_ref": "file:/nowhere/x.gguf"}, 404, "MODEL_NOT_FOUND"),
        ({"model_ref": "MODEL", "backend": "tpu"}, 400, "INVALID_BACKEND"),
        ({"model_ref": "MODEL", "backend": "metal"}, 422, "BACKEND_UNAVAILABLE"),
        ({"model_ref": "MODEL", "backend": "cpu", "device": 7}, 400, "DEVICE_UNAVAILABLE"),
        ({"model_ref": "MODEL", "device": 0}, 400, "INVALID_REQUEST"),
        ({"model_ref": "MODEL", "speed": 11}, 400, "INVALID_REQUEST"),
        ({"worker_id": "worker-x"}, 404, "WORKER_NOT_FOUND"),
    ],
)
def test_a_spawn_that_cannot_be_is_refused_by_name(
    hive: HiveNode, model: str, body: dict[str, Any], status: int, code: str
) -> None:
    if body.get("model_ref") == "MODEL":
        body = {**body, "model_ref": model}
    answer = hive.call("POST", "/v1/workers/spawn", body)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert hive.workers() == []


def test_a_model_that_does_not_fit_is_refused_in_numbers(start_hive: Start, model: str) -> None:
    hive = start_hive(config={"hardware": {"ram_available_mb": 0}})
    answer = hive.call("POST", "/v1/workers/spawn", {"model_ref": model})
    assert answer.status_code == 507
    assert error_of(answer)["details"] == {"required": 1, "available": 0, "resource": "ram"}
    assert hive.log("preflight", passed=False)[0]["required_mb"] == 1
    assert hive.workers() == []


def test_a_worker_that_does_not_fit_is_refused_with_the_terms_on_which_it_would(
    start_hive: Start, tmp_path: Path
) -> None:
    model = f"file:{write_tiny_model(tmp_path / 'real')}"
    hardware, worker = {"ram_available_mb": 2}, {"max_parallel_requests": 64}
    hive = start_hive(config={"hardware": hardware, "worker": worker})
    refused = error_of(hive.call("POST", "/v1/workers/spawn", {"model_ref": model}))
    assert refused["code"] == "VRAM_EXHAUSTED"
    assert refused["details"]["required"] > refused["details"]["available"] == 2
    assert refused["suggestion"].startswith("It fits with worker.max_parallel_requests = 1 (RAM ")
    (listed,) = hive.call("GET", "/v1/models").json()["models"]
    assert listed["fit_mb"]["cpu"]["ram"] == refused["details"]["required"]
    assert hive.workers() == []


def test_a_callback_follows_the_rules(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    body = {
        "worker_id": spawned["worker_id"],
        "url": spawned["url"],
        "model_ref": model,
        "backend": "cpu",
        "device": 0,
    }

    def call_back(key: str | None, **changes: object) -> Any:
        return hive.call("POST", "/v1/workers/ready", {**body, **changes}, key=key)

    own = spawned["api_key"]
    again = call_back(own)
    assert again.status_code == 200
    assert again.json() == {"message": "Worker registered as ready"}
    assert call_back(None).status_code == 401
    assert call_back(hive.key).status_code == 401
    assert error_of(call_back(own, worker_id="worker-x"))["code"] == "WORKER_NOT_FOUND"
    taken = call_back(own, url="http://127.0.0.1:1")
    assert (taken.status_code, error_of(taken)["code"]) == (409, "WORKER_ALREADY_REGISTERED")
    assert call_back(own, device="zero").status_code == 400


def test_states_in_the_list_are_the_workers_own(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    request = {"request_id": "r-1", "prompt": "x", "max_tokens": 2048}
    held = ask_worker(spawned, "POST", "/v1/inference", request, stream=True)
    record = hive.wait_state(spawned["worker_id"], "busy", 2)
    assert (record["slots_available"], record["idle_since"]) == (0, None)
    ask_worker(spawned, "DELETE", "/v1/inference/r-1")
    record = hive.wait_state(spawned["worker_id"], "idle", 2)
    assert (record["slots_available"], record["idle_since"] is not None) == (1, True)
    held.close()


def test_a_worker_is_ended_on_request(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    pid = hive.workers()[0]["pid"]
    answer = hive.call("DELETE", f"/v1/workers/{spawned['worker_id']}")
    assert answer.status_code == 202
    hive.wait_gone(spawned["worker_id"])
    assert not psutil.pid_exists(pid)
    assert len(hive.worker_requests(spawned["worker_id"], "POST", "/v1/admin/shutdown")) == 1
    gone = hive.call("DELETE", f"/v1/workers/{spawned['worker_id']}")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "WORKER_NOT_FOUND")


def test_the_error_of_a_failed_start_is_told_even_to_who_asks_afterwards(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(worker="--exit-before-http 7")
    spawned = hive.spawn(model)
    hive.wait_gone(spawned["worker_id"])
    *_, error, done = hive.events(f"/v1/workers/{spawned['worker_id']}/narration")
    assert error[1]["error"]["code"] == "WORKER_START_FAILED"
    assert error[1]["error"]["details"]["exit_code"] == 7
    assert done == ("", "[DONE]")
    assert hive.log("worker_crashed")[0]["last_lines"] == ["scripted worker: giving up before HTTP"]
    unknown = hive.call("GET", "/v1/workers/worker-x/narration")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "WORKER_NOT_FOUND")


def test_a_missing_worker_program_is_told_at_the_spawn(start_hive: Start, model: str) -> None:
    hive = start_hive(config={"pool": {"worker_command": "/nowhere/worker"}})
    answer = hive.call("POST", "/v1/workers/spawn", {"model_ref": model})
    assert (answer.status_code, error_of(answer)["code"]) == (500, "WORKER_START_FAILED")
    assert "/nowhere/worker" in error_of(answer)["message"]


def test_a_model_in_use_cannot_be_removed(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    refused = hive.call("POST", "/v1/models/remove", {"model_ref": model})
    assert (refused.status_code, error_of(refused)["code"]) == (409, "MODEL_IN_USE")
    assert error_of(refused)["details"]["workers"] == [spawned["worker_id"]]
    hive.call("DELETE", f"/v1/workers/{spawned['worker_id']}")
    hive.wait_gone(spawned["worker_id"])
    assert hive.call("POST", "/v1/models/remove", {"model_ref": model}).status_code == 200
    assert Path(model.removeprefix("file:")).exists()


def test_metrics_count_what_happened(hive: HiveNode, model: str) -> None:
    spawned = hive.idle_worker(model)
    hive.call("GET", "/v1/workers/worker-x/narration")
    text = hive.call("GET", "/metrics").text
    assert 'rbee_hive_workers_total{state="idle"} 1.0' in text
    assert 'rbee_hive_worker_starts_total{outcome="ok"}' in text
    assert 'rbee_hive_errors_total{code="WORKER_NOT_FOUND"}' in text
    assert "rbee_hive_gpus_total" in text
    assert 'rbee_hive_request_duration_seconds_bucket{le="0.001"}' in text
    assert spawned["worker_id"] not in text
