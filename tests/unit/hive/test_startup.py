"""The story of a start: complete for every reader, over exactly once, kept for a while when it failed."""

from __future__ import annotations

import gevent
import pytest

from rbee.core.errors import WorkerNotFound, WorkerStartFailed
from rbee.hive import startup as startup_module
from rbee.hive.startup import FailedStarts, StartupLog


def read(log: StartupLog) -> list[bytes]:
    return list(log.follow())


def test_a_late_reader_gets_everything_from_the_beginning() -> None:
    log = StartupLog()
    log.narrate("rbee-hive", "preflight", "one")
    log.event({"event": "progress", "data": {"stage": "converting", "tensors_done": 1, "tensors_total": 2}})
    log.succeed()
    assert read(log) == [
        b'event: narration\ndata: {"actor":"rbee-hive","action":"preflight","human":"one"}\n\n',
        b'event: progress\ndata: {"stage":"converting","tensors_done":1,"tensors_total":2}\n\n',
    ]


def test_a_reader_gets_what_comes_while_it_waits_and_ends_with_the_start() -> None:
    log = StartupLog()
    reader = gevent.spawn(read, log)
    gevent.sleep(0)
    log.narrate("a", "b", "one")
    gevent.sleep(0)
    log.narrate("a", "b", "two")
    assert not reader.ready()
    log.succeed()
    assert len(reader.get(timeout=1)) == 2


def test_a_failed_start_tells_its_error_after_the_story() -> None:
    log = StartupLog()
    log.narrate("a", "b", "one")
    log.fail(WorkerStartFailed("no HTTP"))
    story, error = [], None
    try:
        for raw in log.follow():
            story.append(raw)
    except WorkerStartFailed as raised:
        error = raised
    assert len(story) == 1
    assert error is not None


def test_only_the_first_end_counts() -> None:
    log = StartupLog()
    log.succeed()
    log.fail(WorkerStartFailed("too late"))
    assert log.error is None
    assert read(log) == []


def test_lines_after_the_end_reach_readers_that_come_later() -> None:
    log = StartupLog()
    log.narrate("a", "b", "one")
    log.succeed()
    log.narrate("model-loader", "model_load", "loaded")
    assert len(read(log)) == 2


def test_a_very_long_story_loses_its_beginning_and_not_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_module, "KEPT_EVENTS", 10)
    log = StartupLog()
    for number in range(25):
        log.narrate("a", "b", str(number))
    log.succeed()
    assert [raw.split(b'"human":"')[1][:2] for raw in read(log)] == [str(n).encode() for n in range(15, 25)]


def test_failed_starts_are_found_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    failed, log = FailedStarts(), StartupLog()
    failed.keep("worker-a", log)
    assert failed.get("worker-a") is log
    monkeypatch.setattr(startup_module, "FAILURES_KEPT_S", -1.0)
    with pytest.raises(WorkerNotFound):
        failed.get("worker-a")


def test_failed_starts_are_bounded() -> None:
    failed = FailedStarts()
    for number in range(startup_module.KEPT_FAILURES + 5):
        failed.keep(f"worker-{number}", StartupLog())
    with pytest.raises(WorkerNotFound):
        failed.get("worker-4")
    failed.get("worker-5")
