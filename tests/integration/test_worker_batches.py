"""A worker with several slots and the embedded model: streams side by side, as their clients see them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import AllSlotsBusy
from support.daemons import wait_until
from support.worker_process import WorkerProcess, running_worker

pytestmark = pytest.mark.model

SLOTS = 4
STORY = "Write a short story about a bee."
PROMPTS = [
    STORY,
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue, and why it is red in the evening, to a child of six.",
    "List four fruits.",
]


@pytest.fixture(scope="module")
def worker(
    embedded_converted: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    # In int8 the engine rounds otherwise where it reads a prompt token by token, beside a shorter one.
    folder = embedded_converted("float32")
    settings = {"worker": {"max_parallel_requests": SLOTS}}
    with running_worker(tmp_path_factory.mktemp("worker"), folder, settings=settings) as running:
        running.wait_state("idle", 120)
        yield running


@pytest.fixture(autouse=True)
def _idle_afterwards(worker: WorkerProcess) -> Iterator[None]:
    yield
    wait_until(lambda: worker.health()["slots_available"] == SLOTS, 30, "all slots free")


class Stream(threading.Thread):
    """One request, read in a thread of its own."""

    def __init__(self, worker: WorkerProcess, **body: Any) -> None:
        super().__init__(daemon=True)
        self._worker, self._body = worker, {"temperature": 0, **body}
        self.arrivals: list[float] = []
        self.indices: list[int] = []
        self.text = ""
        self.last: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        with self._worker.client.stream("POST", "/v1/inference", body=self._body) as stream:
            for event in stream:
                if event.name or event.is_done_marker:
                    continue
                data = event.json()
                if "token" not in data:
                    self.last = data
                    continue
                self.arrivals.append(time.monotonic())
                self.indices.append(data["index"])
                self.text += data["token"]

    def ended(self) -> Stream:
        self.join(120)
        assert not self.is_alive()
        return self

    def wait_tokens(self, count: int) -> None:
        wait_until(lambda: len(self.arrivals) >= count, 60, f"{count} tokens")


def test_streams_run_side_by_side_and_each_says_what_it_says_alone(worker: WorkerProcess) -> None:
    alone = [worker.text(prompt=prompt, max_tokens=24, temperature=0) for prompt in PROMPTS]
    streams = [Stream(worker, prompt=prompt, max_tokens=24) for prompt in PROMPTS]
    assert [stream.ended().text for stream in streams] == alone
    assert all(stream.indices == list(range(len(stream.indices))) for stream in streams)


def test_no_stream_waits_for_the_end_of_another(worker: WorkerProcess) -> None:
    streams = [Stream(worker, prompt=STORY, max_tokens=80) for _ in range(SLOTS)]
    for stream in streams:
        stream.ended()
    assert max(stream.arrivals[0] for stream in streams) < min(stream.arrivals[-1] for stream in streams)


def test_a_request_above_the_slots_is_refused_with_the_numbers(worker: WorkerProcess) -> None:
    streams = [Stream(worker, prompt=STORY, max_tokens=60) for _ in range(SLOTS)]
    wait_until(lambda: worker.health()["slots_available"] == 0, 30, "no free slot")
    assert worker.health()["state"] == "busy"
    with pytest.raises(AllSlotsBusy) as refused:
        worker.text(prompt="Hi", max_tokens=1)
    assert refused.value.details == {"slots_total": SLOTS, "slots_busy": SLOTS}
    assert {stream.ended().text for stream in streams} == {streams[0].text}


def test_cancelling_one_stream_leaves_the_others_as_they_are(worker: WorkerProcess) -> None:
    whole = worker.text(prompt=STORY, max_tokens=40, temperature=0)
    streams = [
        Stream(worker, prompt=STORY, max_tokens=40, request_id=f"batch-{number}") for number in range(3)
    ]
    streams[1].wait_tokens(3)
    worker.client.delete("/v1/inference/batch-1")
    wait_until(lambda: worker.health()["active_requests"] < 3, 5, "the slot of the cancelled one")
    assert streams[1].ended().last["error"]["code"] == "REQUEST_CANCELED"
    assert len(streams[1].arrivals) < 40
    assert [streams[0].ended().text, streams[2].ended().text] == [whole, whole]


def test_a_client_that_vanishes_frees_its_slot_and_leaves_the_others_as_they_are(
    worker: WorkerProcess,
) -> None:
    whole = worker.text(prompt=STORY, max_tokens=60, temperature=0)
    streams = [Stream(worker, prompt=STORY, max_tokens=60) for _ in range(2)]
    body = {"prompt": STORY, "max_tokens": 60, "temperature": 0}
    with worker.client.stream("POST", "/v1/inference", body=body) as leaving:
        next(event for event in leaving if '"token"' in event.data)
        assert worker.health()["active_requests"] == 3
    wait_until(lambda: worker.health()["active_requests"] == 2, 5, "the slot of the client that left")
    assert [stream.ended().text for stream in streams] == [whole, whole]


def test_a_short_answer_frees_its_slot_before_the_long_ones_of_its_batch(worker: WorkerProcess) -> None:
    long = [Stream(worker, prompt=STORY, max_tokens=80) for _ in range(SLOTS - 1)]
    short = Stream(worker, prompt=STORY, max_tokens=2).ended()
    assert short.last["total_tokens"] == 2
    wait_until(lambda: worker.health()["active_requests"] == SLOTS - 1, 5, "a free slot")
    # A newcomer does not wait for their end.
    newcomer = Stream(worker, prompt="List four fruits.", max_tokens=2).ended()
    ends = [stream.ended().arrivals[-1] for stream in long]
    assert newcomer.arrivals[0] < max(ends)


def test_seeded_answers_are_the_same_beside_others(worker: WorkerProcess) -> None:
    body: dict[str, Any] = {"prompt": STORY, "max_tokens": 16, "temperature": 1.0, "seed": 7}
    alone = worker.text(**body)
    streams = [
        Stream(worker, prompt=PROMPTS[1], max_tokens=30),
        Stream(worker, **body),
        Stream(worker, **body),
    ]
    assert [stream.ended().text for stream in streams[1:]] == [alone, alone]


def test_equal_prompts_in_int8_say_together_what_they_say_alone(
    embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = {"worker": {"max_parallel_requests": 3, "batch_lengths": "equal"}}
    with running_worker(tmp_path, embedded_converted("int8"), settings=settings) as worker:
        worker.wait_state("idle", 120)
        asked = [STORY, STORY, PROMPTS[2]]
        alone = [worker.text(prompt=prompt, max_tokens=24, temperature=0) for prompt in asked]
        streams = [Stream(worker, prompt=prompt, max_tokens=24) for prompt in asked]
        assert [stream.ended().text for stream in streams] == alone
