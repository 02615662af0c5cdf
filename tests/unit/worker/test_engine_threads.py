"""A run that is alone has all cores, several share them, and the change comes while they go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from rbee.worker.adapters import ctranslate2_engine
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.adapters.ctranslate2_run import CTranslate2Run
from rbee.worker.adapters.engine_threads import EngineThreads, openmp_setter
from rbee.worker.ports import Decoding
from support.tiny_ct2 import write_tiny_model

PATIENCE_S = 20.0


@pytest.mark.parametrize(("cores", "runs", "share"), [(2, 1, 2), (2, 2, 1), (2, 3, 1), (8, 3, 2), (1, 1, 1)])
def test_cores_are_shared_out(cores: int, runs: int, share: int) -> None:
    told: list[int] = []
    threads = EngineThreads(cores, 2, told.append)
    with ExitStack() as stack:
        for _ in range(runs):
            stack.enter_context(threads.running())
        threads.follower()()
    assert told == [share]


def test_a_run_is_told_only_what_is_new() -> None:
    told: list[int] = []
    threads = EngineThreads(4, 2, told.append)
    with threads.running():
        follow = threads.follower()
        follow()
        follow()
        with threads.running():
            follow()
            follow()
        follow()
    assert told == [4, 2, 4]


def test_where_the_number_cannot_be_changed_it_is_the_usual_share() -> None:
    threads = EngineThreads(8, 2, None)
    with threads.running():
        threads.follower()()
    assert threads.at_first == 4
    assert EngineThreads(8, 2, lambda _count: None).at_first == 8


def test_the_setter_sets_the_calling_thread_alone() -> None:
    import ctranslate2  # noqa: F401 (brings OpenMP along)
    from threadpoolctl import ThreadpoolController

    def now() -> int:
        (library, *_) = ThreadpoolController().select(user_api="openmp").lib_controllers
        return int(library.get_num_threads())

    set_threads = openmp_setter()
    assert set_threads is not None
    before, seen = now(), list[int]()

    def elsewhere() -> None:
        set_threads(before + 3)
        seen.append(now())

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join(PATIENCE_S)
    assert (seen, now()) == ([before + 3], before)


class Told:
    """Which thread was given how many, in order; each call goes on only when the test's gate for it opens."""

    def __init__(self, set_threads: Callable[[int], None]) -> None:
        self.calls: list[tuple[int, int]] = []
        self.short_is_over = False
        self._set_threads = set_threads

    def __call__(self, count: int) -> None:
        self.calls.append((threading.get_native_id(), count))
        self._set_threads(count)
        opens = {
            1: lambda: len(self.calls) >= 2,
            2: lambda: len(self.calls) >= 3,
            3: lambda: self.short_is_over,
        }
        gate = opens.get(len(self.calls), lambda: True)
        end = time.monotonic() + PATIENCE_S
        while not gate() and time.monotonic() < end:
            time.sleep(0.002)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    real = openmp_setter()
    assert real is not None
    recorder = Told(real)
    monkeypatch.setattr(ctranslate2_engine, "openmp_setter", lambda: recorder)
    return recorder


def until(is_so: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE_S):
        while not is_so():
            gevent.sleep(0.002)


def rest_of(run: CTranslate2Run) -> None:
    while run.next_token(PATIENCE_S) is not None:
        pass
    assert run.wait_stopped(PATIENCE_S)


def test_the_engine_follows_while_runs_come_and_go(tmp_path: Path, told: Told) -> None:
    engine = CTranslate2Engine(
        write_tiny_model(tmp_path, context_length=4096),
        worker_id="w",
        device="cpu",
        device_index=0,
        compute_type="float32",
        slots=2,
        cores=2,
    )
    engine.load(lambda _progress: None)
    long = engine.start(["a", "b"], Decoding(20, temperature=0.0), lambda: None)
    until(lambda: bool(told.calls))
    short = engine.start(["c", "d"], Decoding(20, temperature=0.0), lambda: None)
    rest_of(short)
    # The library needs a moment after the last token.
    until(lambda: engine._threads._running == 1)
    told.short_is_over = True
    rest_of(long)
    first = told.calls[0][0]
    assert [count for _, count in told.calls] == [2, 1, 1, 2], "alone, the other, both, alone again"
    assert [thread == first for thread, _ in told.calls] == [True, False, True, True]
    engine.unload()
