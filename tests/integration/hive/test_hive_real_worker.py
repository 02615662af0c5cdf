"""A hive with the real worker and the embedded model: start, answer, idle end, next start from cache."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.hives import HiveNode, ask_worker

pytestmark = pytest.mark.model
Start = Callable[..., HiveNode]


def test_a_model_is_converted_once_served_ended_and_served_again(
    start_hive: Start, embedded_gguf: Path
) -> None:
    model = f"file:{embedded_gguf}"
    hive = start_hive(worker=None, timing={"worker_start_timeout_s": 60, "idle_timeout_s": 4})
    spawned = hive.spawn(model)
    story = hive.events(f"/v1/workers/{spawned['worker_id']}/narration")
    converting = [data for name, data in story if name == "progress"]
    assert converting[-1]["stage"] == "converting"
    assert converting[-1]["tensors_done"] == converting[-1]["tensors_total"] > 200
    actors = {data["actor"] for name, data in story if name == "narration"}
    assert {"rbee-hive", "model-provisioner", "llm-worker-rbee"} <= actors
    assert hive.wait_state(spawned["worker_id"], "idle", 60)["slots_available"] == 1
    pid = hive.workers()[0]["pid"]
    group = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]

    body = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0.0, "raw": True}
    answer = ask_worker(spawned, "POST", "/v1/inference", body)
    tokens = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith('data: {"token"')]
    assert "Paris" in "".join(token["token"] for token in tokens)

    hive.wait_gone(spawned["worker_id"], 15)
    assert hive.log("worker_ended")[0]["reason"] == "idle_timeout"
    assert not [number for number in group if psutil.pid_exists(number)]

    begun = time.monotonic()
    again = hive.idle_worker(model)
    assert again["worker_id"] != spawned["worker_id"]
    assert time.monotonic() - begun < 30
    story = hive.events(f"/v1/workers/{again['worker_id']}/narration")
    assert [name for name, _ in story if name == "progress"] == []
