"""The worker with the embedded default model: text, parameters, cancelling, as a client sees them."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import AllSlotsBusy, InvalidRequest, RequestConflict
from support.daemons import wait_until
from support.worker_process import KEY, WorkerProcess, running_worker

pytestmark = pytest.mark.model

STORY = "Write a short story about a bee."


@pytest.fixture(scope="module")
def worker(
    embedded_converted: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    folder = embedded_converted("int8")
    with running_worker(tmp_path_factory.mktemp("worker"), folder) as running:
        running.wait_state("idle", 120)
        yield running


@pytest.fixture(autouse=True)
def _idle_afterwards(worker: WorkerProcess) -> Iterator[None]:
    yield
    worker.wait_state("idle")


def open_request(worker: WorkerProcess, body: str) -> socket.socket:
    """A connection on which an inference has been asked for."""
    connection = socket.create_connection(("127.0.0.1", worker.daemon.port), timeout=60)
    head = f"POST /v1/inference HTTP/1.1\r\nHost: w\r\nAuthorization: Bearer {KEY}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def test_an_answer_is_fluent_text_that_ends_by_itself(worker: WorkerProcess) -> None:
    data = worker.infer(prompt="What is the capital of France?", max_tokens=60, temperature=0)
    text = "".join(each["token"] for each in data[:-1])
    assert "Paris" in text
    assert data[-1]["stop_reason"] == "EOS"
    assert data[-1]["total_tokens"] == len(data) - 1
    assert "<|im_end|>" not in text


def test_tokens_leave_as_they_are_made(worker: WorkerProcess) -> None:
    arrivals = []
    body = {"prompt": STORY, "max_tokens": 20, "temperature": 0.7}
    with worker.client.stream("POST", "/v1/inference", body=body) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["X-Request-Id"]
        for event in stream:
            if '"token"' in event.data:
                arrivals.append(time.monotonic())
    assert len(arrivals) == 20
    assert arrivals[0] < arrivals[-1] - 10 * 0.001
    assert len(set(arrivals)) == 20


def test_greedy_answers_are_equal(worker: WorkerProcess) -> None:
    body = {"prompt": STORY, "max_tokens": 24, "temperature": 0}
    first = worker.text(**body)
    worker.text(prompt=STORY, max_tokens=8, temperature=1.5, seed=3)
    assert worker.text(**body) == first


def test_equal_seeds_give_equal_text_and_others_do_not(worker: WorkerProcess) -> None:
    body: dict[str, Any] = {"prompt": STORY, "max_tokens": 16, "temperature": 1.0}
    first = worker.text(**body, seed=7)
    unseeded = worker.text(**body)
    assert worker.text(**body, seed=7) == first
    assert worker.text(**body, seed=8) != first
    assert worker.text(**body) != unseeded


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(worker: WorkerProcess) -> None:
    body: dict[str, Any] = {"prompt": STORY, "max_tokens": 16}
    greedy = worker.text(**body, temperature=0)
    assert worker.text(**body, temperature=1.0, top_k=1) == greedy
    assert worker.text(**body, temperature=1.0, top_p=0.0001) == greedy
    assert worker.text(**body, temperature=0.0001) == greedy


def test_a_repetition_penalty_takes_effect(worker: WorkerProcess) -> None:
    body: dict[str, Any] = {"prompt": "bee bee bee bee", "raw": True, "max_tokens": 16, "temperature": 0}
    encouraged, discouraged = (worker.text(**body, repetition_penalty=each) for each in (0.1, 2.0))
    assert 3 * len(set(encouraged)) < len(set(discouraged))


def test_the_system_text_takes_effect(worker: WorkerProcess) -> None:
    body: dict[str, Any] = {"prompt": "Who are you?", "max_tokens": 24, "temperature": 0}
    assert worker.text(**body) != worker.text(**body, system="You are a pirate. Answer like a pirate.")


def test_raw_prompts_bypass_the_chat_template(worker: WorkerProcess) -> None:
    data = worker.text(prompt="The capital of France is", raw=True, max_tokens=5, temperature=0)
    assert data.startswith(" ")


def test_a_stop_string_over_several_tokens_ends_the_text_before_it(worker: WorkerProcess) -> None:
    body: dict[str, Any] = {"prompt": STORY, "max_tokens": 30, "temperature": 0}
    whole = worker.text(**body)
    stop = whole[37:49]
    data = worker.infer(**body, stop=["never comes", stop])
    assert "".join(each["token"] for each in data[:-1]) == whole[: whole.index(stop)]
    assert data[-1]["stop_reason"] == "STOP_SEQUENCE"
    assert data[-1]["total_tokens"] == len(data) - 1


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(worker: WorkerProcess) -> None:
    with pytest.raises(InvalidRequest) as refused:
        worker.infer(prompt="bee " * 3000, max_tokens=100)
    (violation,) = refused.value.details["errors"]
    assert violation["prompt_tokens"] > 3000
    assert (violation["max_tokens"], violation["context_tokens"]) == (100, 2048)
    assert str(violation["prompt_tokens"]) in violation["message"]


def test_a_busy_worker_refuses_and_the_holder_is_undisturbed(worker: WorkerProcess) -> None:
    body = {"prompt": STORY, "max_tokens": 60, "temperature": 0, "request_id": "holder"}
    with worker.client.stream("POST", "/v1/inference", body=body) as stream:
        events = iter(stream)
        next(event for event in events if '"token"' in event.data)
        with pytest.raises(AllSlotsBusy):
            worker.infer(prompt="Hi", max_tokens=3)
        with pytest.raises((RequestConflict, AllSlotsBusy)):
            worker.infer(prompt="Hi", max_tokens=3, request_id="holder")
        rest = list(events)
    assert rest[-2].json()["total_tokens"] == 60


def test_a_delete_stops_the_engine_and_frees_the_slot(worker: WorkerProcess) -> None:
    body = {"prompt": STORY, "max_tokens": 1000, "temperature": 0.7, "request_id": "long"}
    with worker.client.stream("POST", "/v1/inference", body=body) as stream:
        events = iter(stream)
        next(event for event in events if '"index":3' in event.data)
        asked = time.monotonic()
        worker.client.delete("/v1/inference/long")
        assert worker.ready()["slots_available"] == 1
        assert time.monotonic() - asked < 5
        *_, error, end = list(events)
    assert error.json()["error"]["code"] == "REQUEST_CANCELED"
    assert end.is_done_marker
    stood_at = worker.tokens_generated()
    worker.text(prompt="Hi", max_tokens=1)
    assert worker.tokens_generated() == stood_at + 1
    worker.client.delete("/v1/inference/long")


@pytest.mark.parametrize("is_half_closed", [False, True])
def test_a_vanished_client_frees_the_slot_within_a_second(
    worker: WorkerProcess, is_half_closed: bool
) -> None:
    connection = open_request(worker, f'{{"prompt":"{STORY}","max_tokens":1000,"temperature":0.7}}')
    read_until(connection, b'"index":3')
    assert worker.ready()["state"] == "busy"
    left = time.monotonic()
    if is_half_closed:
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()
    wait_until(lambda: worker.ready()["state"] == "idle", 5, "a free slot")
    assert time.monotonic() - left < 1.0
    connection.close()
    stood_at = worker.tokens_generated()
    worker.text(prompt="Hi", max_tokens=1)
    assert worker.tokens_generated() == stood_at + 1
    assert worker.logged("client_gone")


def test_health_answers_at_once_while_tokens_are_made(worker: WorkerProcess) -> None:
    body = {"prompt": STORY, "max_tokens": 40, "temperature": 0}
    times = []
    with worker.client.stream("POST", "/v1/inference", body=body) as stream:
        for event in stream:
            if '"token"' in event.data:
                started = time.monotonic()
                worker.client.get("/v1/health")
                times.append(time.monotonic() - started)
    assert max(times) < 1.0


def test_memory_is_reported(worker: WorkerProcess) -> None:
    assert 100e6 < worker.client.get("/v1/health")["vram_bytes"] < 250e6


def test_loading_shows_every_layer_while_it_happens(
    embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = embedded_converted("float32")
    with running_worker(tmp_path, folder) as loading:
        seen_at = []
        events = []
        with loading.client.stream("GET", "/v1/loading/progress", read_timeout_s=60) as stream:
            for event in stream:
                if not event.is_done_marker:
                    events.append(event.json())
                    seen_at.append(time.monotonic())
                    loading.client.get("/v1/health")
        idle = loading.wait_state("idle")
        assert events[-1] == {"stage": "ready"}
        progress = events[:-1]
        assert [e["layers_loaded"] for e in progress] == list(range(31))
        assert {e["layers_total"] for e in progress} == {30}
        assert [e["vram_mb"] for e in progress] == sorted(e["vram_mb"] for e in progress)
        assert 400 < progress[-1]["vram_mb"] < 600
        assert seen_at[-2] > seen_at[0]
        assert idle["idle_since"]
        ((called, _, _),) = loading.point.calls
        assert called < seen_at[-1]
        assert loading.daemon.stop() == 0


def test_a_shutdown_lets_the_active_request_finish(
    embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    with running_worker(tmp_path, embedded_converted("int8")) as ending:
        ending.wait_state("idle")
        body = {"prompt": STORY, "max_tokens": 30, "temperature": 0}
        with ending.client.stream("POST", "/v1/inference", body=body) as stream:
            events = iter(stream)
            next(event for event in events if '"token"' in event.data)
            assert ending.client.post("/v1/admin/shutdown", {"timeout_seconds": 60}) == {"status": "draining"}
            assert ending.ready()["state"] == "draining"
            *_, done, end = list(events)
        assert done.json()["total_tokens"] == 30
        assert end.is_done_marker
        assert ending.daemon.process.wait(10) == 0
        assert ending.logged("model_unloaded")


def test_a_shutdown_cancels_the_active_request_at_its_deadline(
    embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    with running_worker(tmp_path, embedded_converted("int8")) as ending:
        ending.wait_state("idle")
        body = {"prompt": STORY, "max_tokens": 1500, "temperature": 0.7}
        with ending.client.stream("POST", "/v1/inference", body=body) as stream:
            events = iter(stream)
            next(event for event in events if '"token"' in event.data)
            ending.client.post("/v1/admin/shutdown", {"timeout_seconds": 0.3})
            *_, error, end = list(events)
        assert error.json()["error"]["code"] == "REQUEST_CANCELED"
        assert end.is_done_marker
        assert ending.daemon.process.wait(10) == 0
