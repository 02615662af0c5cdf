"""Reused beginnings with the embedded model: the same text with and without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.worker_process import WorkerProcess, running_worker

pytestmark = pytest.mark.model

SYSTEM = "You are a careful bee. You answer in one short sentence, and you never make anything up."
PROMPTS = ["What is honey?", "What is the capital of France?", "Name three animals.", "What is 2+2?"]


def texts(worker: WorkerProcess) -> list[str]:
    found = []
    for prompt in PROMPTS:
        body = {"prompt": prompt, "system": SYSTEM, "temperature": 0, "max_tokens": 24}
        with worker.client.stream("POST", "/v1/inference", body=body) as stream:
            data = [event.json() for event in stream if not event.name and not event.is_done_marker]
        found.append("".join(entry["token"] for entry in data if "token" in entry))
    return found


@pytest.mark.parametrize("compute_type", ["int8", "float32"])
def test_answers_are_the_same_with_and_without(
    compute_type: str, embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = embedded_converted(compute_type)
    found = {}
    for budget in (0, 256):
        home = tmp_path / str(budget)
        home.mkdir()
        with running_worker(home, folder, settings={"worker": {"prefix_cache_mb": budget}}) as worker:
            worker.wait_state("idle", 120)
            found[budget] = texts(worker)
            reused = worker.metric("rbee_worker_tokens_reused_total")
        assert (reused > 0) is (budget > 0)
    assert found[0] == found[256]
    assert all(found[0])
