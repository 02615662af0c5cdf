"""Start and end of a worker: callback, loading, drain, unload."""

import gevent
import pytest

from rbee.core.errors import ModelIncompatible
from support.workers import AUTH, FakeWorker, events_of, unnamed


def test_a_worker_reports_itself_and_is_idle_when_loaded() -> None:
    worker = FakeWorker().start()
    assert worker.hive.reports == [
        {
            "worker_id": "worker-1",
            "url": "http://127.0.0.1:8001",
            "model_ref": "hf:org/repo",
            "backend": "cpu",
            "device": 0,
            "state": "loading",
            "pid": 4242,
        }
    ]
    assert worker.slots.state == "idle"


def test_the_start_is_narrated_from_the_device_to_the_warm_up() -> None:
    worker = FakeWorker().start()
    gevent.sleep(0)
    assert [action for _, action, _ in worker.narrated] == [
        "server_start",
        "device_init",
        "callback_ready",
        "model_load",
        "model_load",
        "warmup",
        "startup",
    ]


def test_the_warm_up_makes_one_token() -> None:
    worker = FakeWorker().start()
    assert [run.made for run in worker.engine.runs] == [1]


def test_a_worker_lets_nobody_in_before_the_hive_knows_it() -> None:
    worker = FakeWorker()
    worker.hive.answers.clear()
    worker.service.listening()
    while not any(action == "warmup" for _, action, _ in worker.narrated):
        gevent.sleep(0.001)
    gevent.sleep(0.01)
    assert worker.post({"prompt": "Hi", "max_tokens": 3}).status_code == 503
    assert worker.get("/v1/ready").json["state"] == "loading"
    worker.hive.answers.set()
    worker.start()
    assert worker.get("/v1/ready").json["state"] == "idle"


def test_a_hive_that_is_busy_at_first_is_asked_again() -> None:
    worker = FakeWorker()
    worker.hive.refusals = 2
    worker.start()
    assert len(worker.hive.reports) == 1
    assert worker.slots.state == "idle"


def test_a_hive_that_refuses_three_times_ends_the_worker() -> None:
    worker = FakeWorker()
    worker.hive.refusals = 3
    worker.start()
    assert worker.failures == ["the hive did not take the callback after 3 attempts"]
    assert worker.slots.state == "loading"


def test_a_worker_that_cannot_load_still_calls_back() -> None:
    worker = FakeWorker()
    worker.engine.load_error = ModelIncompatible("broken")
    worker.start()
    while not worker.hive.reports:
        gevent.sleep(0.001)
    assert worker.slots.state == "error"
    assert not worker.engine.is_loaded
    assert worker.failures == []


def test_a_defect_while_loading_is_a_loading_error_too() -> None:
    worker = FakeWorker()
    worker.text = None  # type: ignore[assignment]
    worker.start()
    assert worker.slots.state == "error"
    assert worker.journal.error is not None
    assert worker.journal.error.code == "INTERNAL_ERROR"


def test_a_shutdown_lets_active_requests_finish_and_unloads() -> None:
    worker = FakeWorker([*b"a" * 40]).start()
    events = events_of(worker.post({"prompt": "Hi", "max_tokens": 40}).response)
    next(events)
    ending = gevent.spawn(worker.service.shut_down)
    assert unnamed(events)[-1]["stop_reason"] == "MAX_TOKENS"
    ending.join(5)
    assert ending.ready()
    assert not worker.engine.is_loaded


def test_a_shutdown_cancels_what_is_active_at_its_deadline() -> None:
    worker = FakeWorker([*b"a" * 40], drain_timeout_s=0.05).start()
    worker.engine.hold()
    events = events_of(worker.post({"prompt": "Hi", "max_tokens": 40}).response)
    next(events)
    ending = gevent.spawn(worker.service.shut_down)
    assert unnamed(events)[-1]["error"]["code"] == "REQUEST_CANCELED"
    ending.join(5)
    assert ending.ready()
    assert not worker.engine.is_loaded


@pytest.mark.parametrize("body", [{"graceful": False}, {"timeout_seconds": 0}])
def test_an_impatient_shutdown_request_shortens_the_drain(body: dict[str, object]) -> None:
    worker = FakeWorker([*b"a" * 40], drain_timeout_s=600).start()
    worker.engine.hold()
    events = events_of(worker.post({"prompt": "Hi", "max_tokens": 40}).response)
    next(events)
    ending = gevent.spawn(worker.service.shut_down)
    gevent.sleep(0.01)
    assert not ending.ready()
    worker.client.post("/v1/admin/shutdown", json=body, headers=AUTH)
    assert unnamed(events)[-1]["error"]["code"] == "REQUEST_CANCELED"
    ending.join(5)
    assert ending.ready()


def test_a_shutdown_ends_readers_of_loading_progress() -> None:
    worker = FakeWorker()
    worker.engine.loading.clear()
    worker.start()
    gevent.sleep(0.005)
    events = events_of(worker.get("/v1/loading/progress").response)
    next(events)
    worker.service.shut_down()
    assert unnamed(events)[-1]["error"]["code"] == "SERVICE_UNAVAILABLE"
    worker.engine.loading.set()
