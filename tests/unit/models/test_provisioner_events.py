"""What the provisioner writes: rate, order and truth of its progress."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rbee.models.provisioner_events import EventWriter, ReaderGone

MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def writer(stream: io.StringIO, clock: Clock) -> EventWriter:
    return EventWriter(stream, clock=clock)


def _events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_progress_has_the_form_of_the_contract(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.begin(0)
    clock.now += 0.5
    writer.received(2 * MIB, 5 * MIB)
    assert _events(stream) == [
        {
            "stage": "downloading",
            "bytes_downloaded": 2 * MIB,
            "bytes_total": 5 * MIB,
            "speed_mbps": 4.0,
        }
    ]


def test_at_most_ten_events_a_second_and_always_the_first_and_the_last(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.begin(0)
    times: list[float] = []
    for step in range(1, 3001):
        clock.now += 0.001
        before = len(stream.getvalue())
        writer.received(step, 3000)
        if len(stream.getvalue()) > before:
            times.append(clock.now)
    downloaded = [event["bytes_downloaded"] for event in _events(stream)]
    assert downloaded[0] == 1
    assert downloaded[-1] == 3000
    assert len(times) > 20
    for start in times:
        assert sum(start <= at < start + 1.0 for at in times) <= 10


def test_the_last_value_before_a_retry_is_shown(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.begin(0)
    clock.now += 1
    writer.received(10, 100)
    clock.now += 0.001
    writer.received(40, 100)
    writer.narrate("retry", "Error: Connection reset by peer")
    kinds = [event.get("bytes_downloaded", event.get("narration")) for event in _events(stream)]
    assert kinds[:2] == [10, 40]
    assert kinds[2] == {
        "actor": "model-provisioner",
        "action": "retry",
        "human": "Error: Connection reset by peer",
    }


def test_bytes_never_go_back_within_a_chain_and_start_over_in_the_next(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.begin(0)
    for done in (60, 10, 50, 70):
        clock.now += 1
        writer.received(done, 100)
    writer.begin(0)
    clock.now += 1
    writer.received(5, 100)
    assert [event["bytes_downloaded"] for event in _events(stream)] == [60, 60, 60, 70, 5]


def test_a_slow_transfer_has_a_speed_above_zero(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.begin(0)
    clock.now += 30
    writer.received(10, None)
    (event,) = _events(stream)
    assert event["speed_mbps"] == 0.01
    assert event["bytes_total"] is None


def test_speed_counts_only_bytes_of_this_transfer_and_of_late(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.begin(500 * MIB)
    for second in range(1, 11):
        clock.now += 1
        writer.received(500 * MIB + second * MIB, 600 * MIB)
    clock.now += 1
    writer.received(520 * MIB, 600 * MIB)
    speeds = [event["speed_mbps"] for event in _events(stream)]
    assert speeds[:10] == [1.0] * 10
    assert speeds[10] == pytest.approx(4.0, abs=1.5)


def test_narration_is_cut_at_a_hundred_characters_but_retries_are_not(
    writer: EventWriter, stream: io.StringIO
) -> None:
    writer.narrate("model_download", "x" * 150)
    writer.narrate("retry", "y" * 150)
    humans = [event["narration"]["human"] for event in _events(stream)]
    assert humans == ["x" * 99 + "…", "y" * 150]


def test_conversion_progress_and_the_end_are_events_too(
    writer: EventWriter, stream: io.StringIO, clock: Clock
) -> None:
    writer.calibrating(0, 30)
    writer.calibrating(30, 30)
    clock.now += 1
    writer.converting(1, 2)
    writer.converting(2, 2)
    writer.complete(Path("/models/ct2/x"))
    assert _events(stream) == [
        {"stage": "calibrating", "layers_done": 0, "layers_total": 30},
        {"stage": "calibrating", "layers_done": 30, "layers_total": 30},
        {"stage": "converting", "tensors_done": 1, "tensors_total": 2},
        {"stage": "converting", "tensors_done": 2, "tensors_total": 2},
        {"stage": "complete", "local_path": "/models/ct2/x"},
    ]


def test_a_reader_that_has_gone_ends_the_process_and_is_no_network_error(clock: Clock) -> None:
    class ClosedPipe(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    writer = EventWriter(ClosedPipe(), clock=clock)
    with pytest.raises(ReaderGone) as caught:
        writer.narrate("model_download", "x")
    assert not isinstance(caught.value, Exception)


def test_figures_that_were_held_back_are_shown_when_nothing_follows_them(
    stream: io.StringIO, clock: Clock
) -> None:
    waiting: list[Callable[[], None]] = []
    writer = EventWriter(stream, clock=clock, later=lambda _seconds, call: waiting.append(call))
    writer.received(1, 10)
    writer.received(2, 10)
    writer.received(3, 10)
    assert [event["bytes_downloaded"] for event in _events(stream)] == [1]
    (call,) = waiting
    call()
    assert [event["bytes_downloaded"] for event in _events(stream)] == [1, 3]
    call()
    assert len(_events(stream)) == 2
