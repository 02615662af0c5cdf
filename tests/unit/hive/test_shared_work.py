"""Work that many wait for: what each of them gets to see."""

from typing import Any

import gevent
import pytest
from gevent.event import Event

from rbee.core.errors import DiskFull, InternalError
from rbee.hive.shared_work import OnEvent, ProgressLog, SharedWork


def progress(done: int, total: int = 100) -> dict[str, Any]:
    return {
        "event": "progress",
        "data": {"stage": "downloading", "bytes_downloaded": done, "bytes_total": total},
    }


def narration(text: str) -> dict[str, Any]:
    return {"event": "narration", "data": {"actor": "a", "action": "b", "human": text}}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(events: list[dict[str, Any]]) -> list[object]:
    return [event["data"].get("bytes_downloaded", event["data"].get("human")) for event in events]


def test_a_late_reader_gets_every_narration_and_the_latest_figures() -> None:
    clock = Clock()
    log = ProgressLog(clock)
    for done in (1, 2, 3):
        log.add(progress(done))
        clock.now += 1
    log.add(narration("retry"))
    log.add(progress(4))
    clock.now += 1
    log.add(progress(5))
    log.end()
    assert shown(list(log.follow())) == [3, "retry", 5]


def test_a_reader_that_is_there_sees_figures_as_they_come() -> None:
    log = ProgressLog(clock := Clock())
    seen: list[dict[str, Any]] = []
    reader = gevent.spawn(lambda: seen.extend(log.follow()))
    for done in (1, 2, 3):
        log.add(progress(done))
        clock.now += 1
        gevent.sleep(0)
    log.end()
    reader.join(5)
    assert shown(seen) == [1, 2, 3]


def test_figures_are_held_back_to_ten_a_second_and_the_last_is_never_lost() -> None:
    log = ProgressLog(clock := Clock())
    seen: list[dict[str, Any]] = []
    reader = gevent.spawn(lambda: seen.extend(log.follow()))
    for done in range(1, 100):
        log.add(progress(done))
        clock.now += 0.01
        gevent.sleep(0)
    log.add(narration("reset"))
    clock.now += 0.5
    log.add(progress(100))
    log.end()
    reader.join(5)
    figures = shown(seen)
    assert figures[-3:] == [99, "reset", 100]
    assert len(figures) <= 13


def test_many_retries_never_show_more_than_ten_figures_in_a_second() -> None:
    log, times = ProgressLog(), []

    def read() -> None:
        for event in log.follow():
            if event["event"] == "progress":
                times.append(gevent.get_hub().loop.now())

    reader = gevent.spawn(read)
    for attempt in range(15):
        log.add(progress(attempt))
        log.add(progress(attempt))
        log.add(narration("Retrying"))
    log.end()
    reader.join(5)
    assert len(times) == 15
    assert all(later - earlier >= 0.98 for earlier, later in zip(times, times[10:], strict=False))


def test_memory_is_bounded_however_much_is_told() -> None:
    log = ProgressLog()
    for number in range(2000):
        log.add(narration(str(number)))
    log.end()
    told = shown(list(log.follow()))
    assert len(told) == 500
    assert told[-1] == "1999"


def test_work_goes_on_when_its_reader_leaves_and_a_new_one_attaches() -> None:
    work: SharedWork[int] = SharedWork()
    gate = Event()

    def do(tell: OnEvent) -> int:
        tell(progress(40))
        gate.wait()
        tell(progress(100))
        return 7

    work.start(do, lambda: None)
    first = gevent.spawn(work.follow, lambda _event: None)
    gevent.sleep(0)
    first.kill()
    gate.set()
    seen: list[dict[str, Any]] = []
    assert work.follow(seen.append) == 7
    assert shown(seen) == [40, 100]
    assert work.result == 7


def test_every_reader_gets_the_failure() -> None:
    work: SharedWork[int] = SharedWork()

    def fail(_tell: OnEvent) -> int:
        raise DiskFull(2, 1)

    work.start(fail, lambda: None)
    for _ in range(2):
        with pytest.raises(DiskFull):
            work.follow(lambda _event: None)
    assert work.result is None
    assert not work.settle()


def test_a_defect_ends_the_work_with_an_error_that_hides_its_words() -> None:
    work: SharedWork[int] = SharedWork()

    def fail(_tell: OnEvent) -> int:
        raise ZeroDivisionError("words that must not leak")

    work.start(fail, lambda: None)
    with pytest.raises(InternalError) as failure:
        work.wait()
    assert "words" not in str(failure.value.envelope())


def test_work_is_marked_over_before_anybody_who_waited_goes_on() -> None:
    work: SharedWork[int] = SharedWork()
    order: list[str] = []

    def read() -> None:
        work.wait()
        order.append("reader")

    waiting = gevent.spawn(read)
    work.start(lambda _tell: 1, lambda: order.append("over"))
    waiting.join(5)
    assert order == ["over", "reader"]


def test_figures_that_were_held_back_are_shown_when_nothing_follows_them() -> None:
    log = ProgressLog()
    log.add(progress(1))
    log.add(progress(2))
    assert log.latest_progress == progress(1)["data"]
    seen = []
    for event in log.follow():
        seen.append(event)
        if event == progress(2):
            break
    assert seen == [progress(1), progress(2)]
