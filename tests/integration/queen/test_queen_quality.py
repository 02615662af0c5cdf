"""``POST /v2/models/quality`` against a scripted hive: progress is relayed, the figures come last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests

from support.scripted import ScriptedHive, TaskAnswer, run_task

Start = Callable[..., ScriptedHive]
PATH = "/v2/models/quality"
MODEL = "hf:org/tiny"
MEASURING = {"stage": "measuring", "layers_done": 1, "layers_total": 2}
FIGURES = {"compute_type": "int8", "kl_nats": 0.01, "texts": []}


def ask(url: str) -> TaskAnswer:
    return run_task(url, {"model": MODEL}, path=PATH)


def test_progress_is_relayed_and_the_figures_end_the_stream(queen, hive: Start) -> None:
    peer = hive(quality=[MEASURING, {"stage": "measured", **FIGURES}, {"stage": "complete"}])
    answer = ask(queen.url)
    assert answer.named("progress") == [MEASURING]
    assert answer.data[-1] == {"done": True, "model": MODEL, "quality": FIGURES}
    assert [r["body"] for r in peer.requests("/v1/models/quality", "POST")] == [{"model_ref": MODEL}]


def test_the_hives_error_is_the_answer(queen, hive: Start) -> None:
    error = {"code": "MODEL_NOT_FOUND", "message": "no such model", "details": {"model_ref": MODEL}}
    hive(quality=[{"stage": "error", "error": error}])
    assert ask(queen.url).error["code"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("events", [[], [MEASURING], [MEASURING, {"stage": "complete"}]])
def test_a_stream_without_figures_is_a_bad_answer_of_the_hive(queen, hive: Start, events: list) -> None:
    hive(quality=events)
    assert ask(queen.url).error["code"] == "BAD_HIVE_RESPONSE"


def test_a_body_that_names_no_model_is_refused(queen) -> None:
    answer = requests.post(f"{queen.url}{PATH}", json={"node": "localhost"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
