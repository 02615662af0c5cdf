"""The worker's endpoints with a fake engine: exact bodies, order of events, refusals."""

import json
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from rbee.core.errors import InferenceFailed, MemoryExhausted, ModelIncompatible
from rbee.testing.fake_text_model import END
from support.workers import AUTH, KEY, MODEL, FakeWorker, events_of, text_of, unnamed

HELLO = [*b"Hello bee"]


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker([*HELLO, END]).start()


def test_health_needs_no_key_and_refuses_a_wrong_one(worker: FakeWorker) -> None:
    for path in ("/health", "/v1/health"):
        assert worker.client.get(path).status_code == 200
        assert worker.client.get(path, headers={"Authorization": "Bearer no"}).status_code == 401


def test_health_says_everything(worker: FakeWorker) -> None:
    body = worker.client.get("/v1/health").json
    assert body.pop("idle_since").endswith("Z")
    assert body == {
        "status": "healthy",
        "version": "0.1.0",
        "api_version": "v1",
        "service": "llm-worker-rbee",
        "worker_id": "worker-1",
        "state": "idle",
        "model_loaded": True,
        "slots_total": 1,
        "slots_available": 1,
        "active_requests": 0,
        "vram_bytes": 12 << 20,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/ready"),
        ("GET", "/v1/loading/progress"),
        ("POST", "/v1/inference"),
        ("DELETE", "/v1/inference/x"),
        ("POST", "/v1/admin/shutdown"),
        ("GET", "/metrics"),
    ],
)
def test_all_else_needs_the_key(worker: FakeWorker, method: str, path: str) -> None:
    answer = worker.client.open(path, method=method)
    assert answer.status_code == 401
    assert answer.json["error"]["code"] == "MISSING_API_KEY"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_ready_while_loading_names_where_progress_is_told() -> None:
    worker = FakeWorker()
    worker.engine.loading.clear()
    worker.start()
    assert worker.get("/v1/ready").json == {
        "ready": False,
        "state": "loading",
        "slots_total": 1,
        "slots_available": 0,
        "active_requests": 0,
        "idle_since": None,
        "model_loaded": False,
        "progress_url": "/v1/loading/progress",
    }
    worker.engine.loading.set()


def test_ready_when_loaded(worker: FakeWorker) -> None:
    body = worker.get("/v1/ready").json
    assert body.pop("idle_since")
    assert body == {
        "ready": True,
        "state": "idle",
        "slots_total": 1,
        "slots_available": 1,
        "active_requests": 0,
        "model_loaded": True,
    }


def test_a_stream_has_narration_then_started_then_tokens_then_one_end(worker: FakeWorker) -> None:
    answer = worker.post({"prompt": "Hi", "max_tokens": 20, "request_id": "r-1"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["X-Request-Id"] == "r-1"
    events = list(events_of(answer.response))
    named = [event for event in events if event.name]
    assert [json.loads(e.data)["action"] for e in named if e.name == "narration"] == [
        "execute_request",
        "tokenize",
        "inference_start",
        "inference_complete",
    ]
    (started,) = [event for event in events if event.name == "started"]
    assert json.loads(started.data) == {"request_id": "r-1", "worker_id": "worker-1", "model": MODEL}
    data = unnamed(events)
    assert data[:2] == [{"token": "H", "index": 0}, {"token": "e", "index": 1}]
    done = data.pop()
    assert done.pop("duration_ms") >= 0
    assert done == {"done": True, "total_tokens": 9, "stop_reason": "EOS"}
    assert text_of(data) == "Hello bee"
    assert [each["index"] for each in data] == list(range(9))


def test_the_events_are_written_compactly_and_in_this_order_of_keys(worker: FakeWorker) -> None:
    raw = b"".join(worker.post({"prompt": "Hi", "max_tokens": 1}).response)
    assert b'\n\ndata: {"token":"H","index":0}\n\n' in raw
    assert b'\n\ndata: {"done":true,"total_tokens":1,"duration_ms":' in raw
    assert raw.endswith(b',"stop_reason":"MAX_TOKENS"}\n\ndata: [DONE]\n\n')


def test_every_tenth_token_is_narrated() -> None:
    worker = FakeWorker([*b"x" * 25]).start()
    events = list(events_of(worker.post({"prompt": "Hi", "max_tokens": 25}).response))
    told = [json.loads(e.data) for e in events if e.name == "narration" and "token_generate" in e.data]
    assert [each["human"] for each in told] == ["Generated 10 tokens", "Generated 20 tokens"]


def test_a_stop_string_ends_the_answer_before_it(worker: FakeWorker) -> None:
    data = unnamed(events_of(worker.post({"prompt": "Hi", "max_tokens": 20, "stop": ["o b", "zz"]}).response))
    assert text_of(data) == "Hell"
    assert data[-1]["stop_reason"] == "STOP_SEQUENCE"
    assert data[-1]["total_tokens"] == len(data) - 1 == 7


def test_a_half_character_at_the_end_goes_with_the_last_token() -> None:
    worker = FakeWorker([*b"a\xf0\x9f", END]).start()
    data = unnamed(events_of(worker.post({"prompt": "Hi", "max_tokens": 9}).response))
    assert [each["token"] for each in data[:-1]] == ["a", "", "�"]
    assert data[-1]["total_tokens"] == 3


def test_an_answer_without_tokens_is_complete() -> None:
    worker = FakeWorker([END]).start()
    data = unnamed(events_of(worker.post({"prompt": "Hi", "max_tokens": 9}).response))
    assert [data[0]["total_tokens"], data[0]["stop_reason"]] == [0, "EOS"]
    assert len(data) == 1


def test_the_slot_is_free_when_the_client_learns_the_end(worker: FakeWorker) -> None:
    for event in events_of(worker.post({"prompt": "Hi", "max_tokens": 4}).response):
        if '"done":true' in event.data:
            assert worker.slots.view().state == "idle"
            break
    else:
        raise AssertionError("no end")


def open_stream(worker: FakeWorker, **body: Any) -> Iterator[Any]:
    """A stream that has sent its first token and is held."""
    worker.engine.go_on()
    events = events_of(worker.post({"prompt": "Hi", "max_tokens": 50, **body}).response)
    for event in events:
        if '"token"' in event.data:
            worker.engine.hold()
            return events
    raise AssertionError("no token")


def test_a_busy_worker_answers_with_exactly_this_body(worker: FakeWorker) -> None:
    worker.engine.answer = [*b"a" * 50]
    holder = open_stream(worker)
    assert worker.get("/v1/ready").json["state"] == "busy"
    assert worker.get("/v1/ready").json["ready"] is False
    refused = worker.post({"prompt": "Hi", "max_tokens": 4})
    assert refused.status_code == 503
    assert refused.json == {
        "error": {
            "code": "ALL_SLOTS_BUSY",
            "message": "Worker is busy, try again later",
            "slots_total": 1,
            "slots_busy": 1,
            "details": {"slots_total": 1, "slots_busy": 1},
            "suggestion": "Wait for current request to complete or use a different node",
        }
    }
    worker.engine.go_on()
    assert unnamed(holder)[-1]["stop_reason"] == "MAX_TOKENS"


def test_an_active_request_id_is_a_conflict() -> None:
    worker = FakeWorker([*b"a" * 50], slots=2).start()
    holder = open_stream(worker, request_id="same")
    refused = worker.post({"prompt": "Hi", "max_tokens": 4, "request_id": "same"})
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "REQUEST_CONFLICT")
    worker.engine.go_on()
    list(holder)
    assert worker.post({"prompt": "Hi", "max_tokens": 4, "job_id": "same"}).status_code == 200


def test_a_loading_worker_is_not_ready() -> None:
    worker = FakeWorker()
    refused = worker.post({"prompt": "Hi", "max_tokens": 4})
    assert refused.status_code == 503
    assert refused.json["error"]["code"] == "WORKER_NOT_READY"
    assert refused.json["error"]["details"] == {"state": "loading"}


def test_a_delete_ends_the_stream_and_frees_the_slot(worker: FakeWorker) -> None:
    worker.engine.answer = [*b"a" * 50]
    holder = open_stream(worker, request_id="r-2")
    assert worker.client.delete("/v1/inference/r-2", headers=AUTH).status_code == 204
    assert worker.slots.view().state == "idle"
    sent = worker.metric("rbee_worker_tokens_generated_total")
    worker.engine.go_on()
    error = unnamed(holder)[-1]["error"]
    assert error["code"] == "REQUEST_CANCELED"
    assert error["details"] == {"request_id": "r-2", "tokens_generated": int(sent)}
    assert worker.metric("rbee_worker_tokens_generated_total") == sent
    assert worker.metric("rbee_worker_requests_total", outcome="canceled") == 1


@pytest.mark.parametrize("request_id", ["unknown", "r-1"])
def test_a_delete_of_an_unknown_or_finished_request_is_fine(worker: FakeWorker, request_id: str) -> None:
    list(worker.post({"prompt": "Hi", "max_tokens": 4, "request_id": "r-1"}).response)
    answer = worker.client.delete(f"/v1/inference/{request_id}", headers=AUTH)
    assert (answer.status_code, answer.data) == (204, b"")


def test_a_stream_that_is_closed_before_it_began_leaves_nothing_behind(worker: FakeWorker) -> None:
    worker.engine.hold()
    answer = worker.post({"prompt": "Hi", "max_tokens": 50})
    answer.close()
    worker.engine.go_on()
    assert worker.slots.wait_empty(2)
    assert worker.slots.view().state == "idle"


def test_a_client_that_leaves_frees_the_slot(worker: FakeWorker) -> None:
    worker.engine.answer = [*b"a" * 50]
    answer = worker.post({"prompt": "Hi", "max_tokens": 50})
    events = events_of(answer.response)
    for event in events:
        if '"token"' in event.data:
            break
    worker.engine.hold()
    answer.close()
    assert worker.slots.wait_empty(2)
    made = worker.engine.runs[-1].made
    worker.engine.go_on()
    gevent.sleep(0.05)
    assert worker.engine.runs[-1].made == made
    assert worker.metric("rbee_worker_requests_total", outcome="client_gone") == 1


def test_all_violations_are_listed_and_the_prompt_is_not_echoed(worker: FakeWorker) -> None:
    body = {
        "prompt": "secret words\x00",
        "temperature": 3,
        "top_p": 0,
        "min_p": 0.5,
        "stop": ["a", "b", "c", "d", "e"],
        "stream": False,
        "typo": 1,
    }
    answer = worker.post(body)
    assert answer.status_code == 400
    error = answer.json["error"]
    assert error["code"] == "INVALID_REQUEST"
    fields = {each["field"] for each in error["details"]["errors"]}
    assert fields == {"prompt", "max_tokens", "temperature", "top_p", "min_p", "stop", "stream", "typo"}
    assert "secret words" not in answer.text


def test_a_prompt_that_does_not_fit_the_context_is_refused_with_the_numbers() -> None:
    worker = FakeWorker(context_tokens=64).start()
    answer = worker.post({"prompt": "x" * 60, "max_tokens": 5})
    assert answer.status_code == 400
    assert answer.json["error"]["details"]["errors"] == [
        {
            "field": "prompt",
            "constraint": "context",
            "message": "60 prompt tokens and max_tokens 5 exceed the context of 64 tokens",
            "prompt_tokens": 60,
            "max_tokens": 5,
            "context_tokens": 64,
        }
    ]
    assert worker.post({"prompt": "x" * 59, "max_tokens": 5}).status_code == 200


def test_the_models_own_context_counts_when_it_is_smaller() -> None:
    worker = FakeWorker(context_tokens=2048)
    worker.text.context_length = 32
    answer = worker.start().post({"prompt": "x" * 30, "max_tokens": 3})
    assert answer.json["error"]["details"]["errors"][0]["context_tokens"] == 32


def test_a_refused_prompt_does_not_move_idle_since() -> None:
    worker = FakeWorker(context_tokens=64).start()
    before = worker.get("/v1/ready").json["idle_since"]
    gevent.sleep(0.002)
    worker.post({"prompt": "x" * 60, "max_tokens": 5})
    assert worker.get("/v1/ready").json["idle_since"] == before


def test_an_inference_that_takes_too_long_ends_by_a_timeout(worker: FakeWorker) -> None:
    worker.engine.hold()
    answer = worker.post({"prompt": "Hi", "max_tokens": 4, "timeout_seconds": 1})
    error = unnamed(events_of(answer.response))[-1]["error"]
    assert error["code"] == "REQUEST_TIMEOUT"
    assert error["details"] == {"timeout_seconds": 1, "tokens_generated": 0}
    assert worker.slots.view().state == "idle"


def test_an_engine_that_gives_no_token_ends_by_a_stall() -> None:
    worker = FakeWorker([*b"abc"], stall_s=0.2).start()
    worker.engine.hold()
    error = unnamed(events_of(worker.post({"prompt": "Hi", "max_tokens": 3}).response))[-1]["error"]
    assert error["code"] == "GENERATION_TIMEOUT"
    assert error["details"] == {"tokens_generated": 0}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InferenceFailed("worker-1", "broken"), "INFERENCE_FAILED"),
        (MemoryExhausted(900, 100, "ram"), "VRAM_EXHAUSTED"),
    ],
)
def test_a_failing_engine_ends_the_stream_by_its_error(worker: FakeWorker, error: Any, code: str) -> None:
    worker.engine.run_error = error
    data = unnamed(events_of(worker.post({"prompt": "Hi", "max_tokens": 3}).response))
    assert [each["error"]["code"] for each in data] == [code]
    assert worker.slots.view().state == "idle"
    assert worker.metric("rbee_worker_requests_total", outcome="failed") == 1


def test_a_reader_that_comes_after_loading_gets_ready_only(worker: FakeWorker) -> None:
    raw = b"".join(worker.get("/v1/loading/progress").response)
    assert raw == b'data: {"stage":"ready"}\n\ndata: [DONE]\n\n'


def test_a_reader_that_comes_during_loading_gets_everything() -> None:
    worker = FakeWorker()
    worker.engine.loading.clear()
    worker.start()
    gevent.sleep(0.005)
    answer = worker.get("/v1/loading/progress")
    worker.engine.loading.set()
    assert unnamed(events_of(answer.response)) == [
        *(
            {
                "stage": "loading_to_vram",
                "layers_loaded": layer,
                "layers_total": 4,
                "vram_mb": layer * 3,
            }
            for layer in range(5)
        ),
        {"stage": "ready"},
    ]


def test_a_loading_error_is_told_by_progress_and_ready() -> None:
    worker = FakeWorker()
    worker.engine.load_error = ModelIncompatible("it is broken", details={"format": "x"})
    worker.start()
    assert unnamed(events_of(worker.get("/v1/loading/progress").response))[-1] == {
        "stage": "error",
        "message": "it is broken",
    }
    answer = worker.get("/v1/ready")
    assert answer.status_code == 200
    assert (answer.json["ready"], answer.json["state"]) == (False, "error")
    assert answer.json["error"]["code"] == "MODEL_INCOMPATIBLE"
    assert worker.client.get("/v1/health").json["status"] == "unhealthy"
    assert worker.post({"prompt": "Hi", "max_tokens": 3}).json["error"]["details"] == {"state": "error"}


def test_a_shutdown_request_is_accepted_and_refuses_what_comes_later(worker: FakeWorker) -> None:
    answer = worker.client.post("/v1/admin/shutdown", json={}, headers=AUTH)
    assert (answer.status_code, answer.json) == (202, {"status": "draining"})
    assert worker.stops == ["stop"]
    refused = worker.post({"prompt": "Hi", "max_tokens": 3})
    assert (refused.status_code, refused.json["error"]["details"]) == (503, {"state": "draining"})
    assert worker.get("/v1/ready").json["state"] == "draining"


@pytest.mark.parametrize("body", [{"graceful": "yes"}, {"timeout_seconds": -1}, {"extra": 1}])
def test_a_malformed_shutdown_request_is_refused(worker: FakeWorker, body: dict[str, Any]) -> None:
    answer = worker.client.post("/v1/admin/shutdown", json=body, headers=AUTH)
    assert answer.status_code == 400
    assert worker.slots.view().state == "idle"


def test_metrics_count_what_happened(worker: FakeWorker) -> None:
    list(worker.post({"prompt": "Hello", "max_tokens": 20}).response)
    text = worker.get("/metrics").text
    for line in (
        'rbee_worker_requests_total{outcome="done"} 1.0',
        "rbee_worker_tokens_in_total 5.0",
        "rbee_worker_tokens_generated_total 9.0",
        "rbee_worker_inference_duration_ms_count 1.0",
        "rbee_worker_vram_bytes 1.2582912e+07",
        "rbee_worker_state 1.0",
        "rbee_worker_slots_total 1.0",
        "rbee_worker_slots_busy 0.0",
    ):
        assert line in text.splitlines()
    assert "rbee_worker_uptime_seconds" in text
    assert KEY not in text
