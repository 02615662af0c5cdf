"""Beginnings that requests share: read once, and no answer is another for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from rbee.worker.adapters import ctranslate2_engine
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.adapters.ctranslate2_run import CTranslate2Run
from rbee.worker.ports import Decoding
from support.tiny_ct2 import write_tiny_model

PATIENCE_S = 20.0
ONE, OTHER = ["a", "b", "c", "d"] * 10, ["d", "c", "b", "a"] * 10
BYTES = 40 * 32 * 2 * 4 * 3
"""What the keys and values of forty tokens take: width 32, three layers, single precision."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CTranslate2Engine]:
    folder = write_tiny_model(tmp_path, context_length=4096)

    def engine(prefix_bytes: int, slots: int = 1, *, equal_lengths: bool = False) -> CTranslate2Engine:
        made = CTranslate2Engine(
            folder,
            worker_id="w",
            device="cpu",
            device_index=0,
            compute_type="float32",
            slots=slots,
            cores=1,
            equal_lengths=equal_lengths,
            prefix_bytes=prefix_bytes,
        )
        made.load(lambda _progress: None)
        return made

    return engine


def start(engine: CTranslate2Engine, prefix: list[str], rest: str, max_tokens: int = 20) -> CTranslate2Run:
    decoding = Decoding(max_tokens, temperature=0.0)
    return engine.start([*prefix, *rest], decoding, lambda: None, len(prefix))


def answer(run: CTranslate2Run) -> list[int]:
    found = []
    while (token := run.next_token(PATIENCE_S)) is not None:
        found.append(token)
    assert run.wait_stopped(PATIENCE_S)
    return found


def reused(engine: CTranslate2Engine, prefix: list[str]) -> int:
    run = start(engine, prefix, "xy", 2)
    answer(run)
    return run.reused_tokens


def test_a_kept_beginning_is_not_read_again_and_changes_no_answer(
    make: Callable[..., CTranslate2Engine],
) -> None:
    without, keeping = make(0), make(10 * BYTES)
    for rest in ("xy", "xyz", "q"):
        expected = answer(start(without, [], "".join(ONE) + rest))
        assert answer(start(without, ONE, rest)) == expected
        assert answer(start(keeping, ONE, rest)) == expected
    assert reused(without, ONE) == 0
    assert reused(keeping, ONE) == len(ONE)
    assert reused(keeping, OTHER) == 0


def test_a_batch_with_one_beginning_says_what_each_says_alone(make: Callable[..., CTranslate2Engine]) -> None:
    engine = make(10 * BYTES, slots=6)
    rests = ["x", "xy", "xyz" * 9, "q", "zz", "y" * 40]
    alone = [answer(start(engine, ONE, rest)) for rest in rests]
    runs = [start(engine, ONE, rest) for rest in rests]
    assert [answer(run) for run in runs] == alone


def test_requests_with_and_without_a_beginning_share_batches(make: Callable[..., CTranslate2Engine]) -> None:
    engine = make(10 * BYTES, slots=4)
    asked = [(ONE, "xy"), (OTHER, "xy"), ([], "abcdxy" * 7), (ONE, "xyz")]
    alone = [answer(start(engine, prefix, rest)) for prefix, rest in asked]
    runs = [start(engine, prefix, rest) for prefix, rest in asked]
    assert [answer(run) for run in runs] == alone


def test_where_lengths_must_be_equal_beginnings_must_be_too(make: Callable[..., CTranslate2Engine]) -> None:
    engine = make(0, slots=2, equal_lengths=True)
    long = [start(engine, prefix, "xy", 3000) for prefix in (ONE, OTHER)]
    assert long[0].wait_begun(PATIENCE_S)
    assert not long[1].wait_begun(0.2)
    for run in long:
        run.cancel()
        assert run.wait_stopped(PATIENCE_S)


def test_a_seed_forgets_what_was_kept(make: Callable[..., CTranslate2Engine]) -> None:
    engine = make(10 * BYTES)
    assert [reused(engine, ONE), reused(engine, ONE)] == [0, len(ONE)]
    for _ in range(2):
        answer(engine.start(["a", "b"], Decoding(3, seed=1), lambda: None))
    assert [reused(engine, ONE), reused(engine, ONE)] == [0, len(ONE)]


def test_what_a_seed_s_reload_has_let_go_of_is_not_counted_as_reused(
    make: Callable[..., CTranslate2Engine],
) -> None:
    engine = make(10 * BYTES)
    assert [reused(engine, ONE), reused(engine, ONE)] == [0, len(ONE)]
    answer(engine.start(["a", "b"], Decoding(3), lambda: None))
    run = engine.start([*ONE, *"xy"], Decoding(3, seed=1), lambda: None, len(ONE))
    answer(run)
    assert run.reloads_model
    assert run.reused_tokens == 0
    assert reused(engine, ONE) == len(ONE)


def test_a_full_memory_starts_over_in_a_quiet_moment(
    make: Callable[..., CTranslate2Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2_engine, "_QUIET_S", 0.3)
    engine = make(int(1.5 * BYTES))
    assert [reused(engine, ONE), reused(engine, ONE), reused(engine, ONE)] == [0, 0, len(ONE)]
    assert [reused(engine, OTHER) for _ in range(3)] == [0] * 3
    assert reused(engine, ONE) == len(ONE)
    # While somebody is served it goes on as it is.
    long = start(engine, OTHER, "xy", 4000)
    assert long.next_token(PATIENCE_S) is not None
    gevent.sleep(0.5)
    long.cancel()
    assert long.wait_stopped(PATIENCE_S)
    assert reused(engine, ONE) == len(ONE)
    with gevent.Timeout(PATIENCE_S):
        while reused(engine, OTHER) == 0:
            gevent.sleep(0.5)
    assert reused(engine, ONE) == 0
    engine.unload()
