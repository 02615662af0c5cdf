"""The worker as a process, with a tiny model: start, order of events, failures, end."""

import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.worker.__main__ import SPIN_COUNT
from support.daemons import environment, wait_until
from support.tiny_ct2 import LAYERS, write_tiny_model
from support.worker_process import (
    KEY,
    MODEL_REF,
    CallbackPoint,
    WorkerProcess,
    running_worker,
    worker_arguments,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def worker(tmp_path: Path, model: Path) -> Iterator[WorkerProcess]:
    with running_worker(tmp_path, model) as running:
        running.wait_state("idle")
        yield running


def run_worker(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "rbee.worker", *arguments],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_callback_names_the_worker_and_carries_its_own_key(worker: WorkerProcess) -> None:
    ((_, authorization, body),) = worker.point.calls
    assert authorization == f"Bearer {KEY}"
    assert body == {
        "worker_id": "worker-1",
        "url": worker.daemon.url,
        "model_ref": MODEL_REF,
        "backend": "cpu",
        "device": 0,
        "state": "loading",
        "pid": worker.daemon.pid,
    }


def test_the_start_is_narrated_on_standard_output(worker: WorkerProcess) -> None:
    lines = wait_until(lambda: worker.narration() if len(worker.narration()) == 7 else None, 5)
    assert {line["type"] for line in lines} == {"narration"}
    actions = [line["action"] for line in lines]
    assert actions[:2] == ["server_start", "device_init"]
    assert sorted(actions[2:4]) == ["callback_ready", "model_load"]
    assert actions[4:] == ["model_load", "warmup", "startup"]
    assert all(len(line["human"]) <= 100 for line in lines)
    assert len(worker.logged("narration")) == 7


def test_a_loaded_worker_generates_and_is_idle_again(worker: WorkerProcess) -> None:
    before = worker.ready()["idle_since"]
    data = worker.infer(prompt="Hello", max_tokens=5, temperature=0)
    assert [each["index"] for each in data[:-1]] == list(range(data[-1]["total_tokens"]))
    after = worker.ready()
    assert (after["state"], after["slots_available"]) == ("idle", 1)
    assert after["idle_since"] > before


@pytest.mark.parametrize(
    ("env", "expected"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_the_engines_threads_do_not_spin_for_long_unless_told_to(
    tmp_path: Path, model: Path, env: dict[str, str], expected: str
) -> None:
    with running_worker(tmp_path, model, env={**env, "OMP_DISPLAY_ENV": "VERBOSE"}) as worker:
        worker.wait_state("idle")
        found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", worker.daemon.output)
    if found is None:
        pytest.skip("the engine has another OpenMP library")
    assert found.group(1) == expected


def test_two_slots_serve_two_requests_at_once(tmp_path: Path, model: Path) -> None:
    with running_worker(tmp_path, model, settings={"worker": {"max_parallel_requests": 2}}) as worker:
        worker.wait_state("idle")
        assert worker.ready()["slots_total"] == 2
        body = {"prompt": "Hello", "max_tokens": 240}
        with (
            worker.client.stream("POST", "/v1/inference", body=body) as first,
            worker.client.stream("POST", "/v1/inference", body=body) as second,
        ):
            ends = [[event.json() for event in list(stream)[:-1]][-1] for stream in (first, second)]
        assert all(end["done"] for end in ends)
        assert worker.wait_state("idle")["slots_available"] == 2


def test_sigterm_unloads_the_model_and_exits_zero(worker: WorkerProcess) -> None:
    assert worker.daemon.stop(signal.SIGTERM) == 0
    assert worker.logged("model_unloaded")
    assert worker.daemon.descendants() == []


def test_sigint_is_the_same(worker: WorkerProcess) -> None:
    assert worker.daemon.stop(signal.SIGINT) == 0
    assert worker.logged("model_unloaded")


def test_a_shutdown_request_ends_the_process_with_zero(worker: WorkerProcess) -> None:
    assert worker.client.post("/v1/admin/shutdown", {}) == {"status": "draining"}
    assert worker.daemon.process.wait(10) == 0
    assert worker.logged("model_unloaded")


def test_a_worker_that_is_still_loading_ends_at_once(tmp_path: Path, model: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.mkdir()
    for name in ("config.json", "vocabulary.json", "tokenizer.json", "rbee.json"):
        (stuck / name).write_bytes((model / name).read_bytes())
    os.mkfifo(stuck / "model.bin")
    with running_worker(tmp_path, stuck) as worker:
        wait_until(lambda: worker.point.calls, 20, "the callback")
        assert worker.ready()["progress_url"] == "/v1/loading/progress"
        assert worker.daemon.stop(signal.SIGTERM, 10) == 0


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "vocabulary.json", ""])
def test_a_folder_that_is_not_complete_is_a_loading_error(tmp_path: Path, model: Path, name: str) -> None:
    folder = tmp_path / "model"
    if name:
        folder.mkdir()
        for file in model.iterdir():
            if file.name != name:
                (folder / file.name).write_bytes(file.read_bytes())
    with running_worker(tmp_path, folder) as worker:
        state = worker.wait_state("error")
        assert state["error"]["code"] == "MODEL_INCOMPATIBLE"
        with worker.client.stream("GET", "/v1/loading/progress") as stream:
            *_, last, end = list(stream)
        assert last.json() == {"stage": "error", "message": state["error"]["message"]}
        assert end.is_done_marker
        wait_until(lambda: worker.point.calls, 10, "the callback")
        assert worker.daemon.stop() == 0
        assert "Traceback" not in worker.daemon.output


def test_a_damaged_model_is_a_loading_error(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(
        content.replace(b"self_attention/linear_0", b"self_attention/linear_9")
    )
    with running_worker(tmp_path, folder) as worker:
        assert worker.wait_state("error")["error"]["code"] == "MODEL_INCOMPATIBLE"
        assert "Traceback" not in worker.daemon.output


def test_early_readers_see_every_layer_and_then_ready(tmp_path: Path, model: Path) -> None:
    with running_worker(tmp_path, model) as worker:
        with worker.client.stream("GET", "/v1/loading/progress", read_timeout_s=30) as stream:
            events = [event.json() for event in list(stream)[:-1]]
        assert events[-1] == {"stage": "ready"}
        if len(events) > 1:
            assert [e["layers_loaded"] for e in events[:-1]] == list(range(LAYERS + 1))


def test_a_hive_that_cannot_be_reached_ends_the_worker_with_one(tmp_path: Path, model: Path) -> None:
    point = CallbackPoint()
    point.close()
    ended = run_worker(tmp_path, *worker_arguments(model, point.url))
    assert ended.returncode == 1
    assert "Error: the hive did not take the callback after 3 attempts" in ended.stderr
    assert "Traceback" not in ended.stderr
    failures = [line for line in ended.stderr.splitlines() if '"callback_failed"' in line]
    assert len(failures) == 3


def test_a_hive_that_does_not_know_the_worker_ends_it_with_one(tmp_path: Path, model: Path) -> None:
    point = CallbackPoint(status=404)
    try:
        ended = run_worker(tmp_path, *worker_arguments(model, point.url))
    finally:
        point.close()
    assert ended.returncode == 1
    assert len(point.calls) == 3
    times = [call[0] for call in point.calls]
    assert all(0.9 < later - earlier < 3 for earlier, later in itertools.pairwise(times))


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, model: Path) -> None:
    key_file = tmp_path / "worker.key"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o644)
    ended = run_worker(tmp_path, *worker_arguments(model, "http://127.0.0.1:1/x", key=f"@{key_file}"))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Error: {key_file}: mode 0644")


def test_a_key_can_come_from_a_file(tmp_path: Path, model: Path) -> None:
    key_file = tmp_path / "worker.key"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o600)
    with running_worker(tmp_path, model, key=f"@{key_file}") as worker:
        worker.wait_state("idle")
        assert worker.point.calls[0][1] == f"Bearer {KEY}"


def test_the_key_is_in_no_output(worker: WorkerProcess) -> None:
    worker.infer(prompt="Hello", max_tokens=3)
    worker.daemon.stop()
    assert KEY not in worker.daemon.output


def test_prompts_and_answers_are_not_logged(worker: WorkerProcess) -> None:
    worker.infer(prompt="marmalade sandwich", max_tokens=3)
    worker.daemon.stop()
    assert "marmalade" not in worker.daemon.output


def test_a_taken_port_is_one_clear_line(tmp_path: Path, worker: WorkerProcess, model: Path) -> None:
    ended = run_worker(
        tmp_path / "second", *worker_arguments(model, worker.point.url, port=worker.daemon.port)
    )
    assert ended.returncode == 1
    assert ended.stderr == f"Error: cannot listen on 127.0.0.1:{worker.daemon.port}: Address already in use\n"


def test_the_version_and_missing_flags(tmp_path: Path) -> None:
    shown = run_worker(tmp_path, "--version")
    assert (shown.returncode, shown.stdout) == (0, "llm-worker-rbee 0.1.0\n")
    assert run_worker(tmp_path).returncode == 2


def test_a_broken_configuration_is_named(tmp_path: Path, model: Path) -> None:
    environ = environment(tmp_path, {"RBEE_WORKER_SETTINGS": json.dumps({"worker": {"slots": 1}})})
    ended = subprocess.run(
        [sys.executable, "-m", "rbee.worker", *worker_arguments(model, "http://127.0.0.1:1/x")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 1
    assert "worker.slots: unknown key" in ended.stderr


def test_a_fleet_key_or_none_is_refused(worker: WorkerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", worker.daemon.port, timeout=10)
    for headers in ({}, {"Authorization": "Bearer another-key-0123456789"}):
        connection.request("POST", "/v1/inference", b'{"prompt":"x","max_tokens":1}', headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 401
    connection.close()
