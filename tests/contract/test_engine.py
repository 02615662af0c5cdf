"""What every engine keeps to: the fake of the unit tests and CTranslate2 with a real, tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import InferenceFailed
from rbee.testing import fake_engine
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.ports import Decoding, Engine, LoadProgress, Run
from support.tiny_ct2 import LAYERS, write_tiny_model

PROMPT = ["a", "b", "c"]
PATIENCE_S = 20.0


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["fake", "ctranslate2"])
def make(request: pytest.FixtureRequest, tiny_model: Path) -> Callable[..., Engine]:
    def engine(slots: int = 1) -> Engine:
        if request.param == "fake":
            return fake_engine.FakeEngine()
        return CTranslate2Engine(
            tiny_model,
            worker_id="w",
            device="cpu",
            device_index=0,
            compute_type="float32",
            slots=slots,
            cores=1,
        )

    return engine


def loaded(engine: Engine) -> Engine:
    engine.load(lambda _progress: None)
    return engine


@pytest.fixture
def engine(make: Callable[..., Engine]) -> Engine:
    return loaded(make())


def collect(run: Run) -> list[int]:
    found = []
    while (token := run.next_token(PATIENCE_S)) is not None:
        found.append(token)
    return found


def run(engine: Engine, max_tokens: int = 12, **how: Any) -> list[int]:
    started = engine.start(PROMPT, Decoding(max_tokens=max_tokens, **how), lambda: None)
    tokens = collect(started)
    assert started.wait_stopped(PATIENCE_S)
    return tokens


def test_loading_reports_no_layer_first_and_then_every_layer_once(make: Callable[..., Engine]) -> None:
    seen: list[LoadProgress] = []
    engine = make()
    assert not engine.is_loaded
    assert engine.memory_bytes == 0
    engine.load(seen.append)
    total = fake_engine.LAYERS if isinstance(engine, fake_engine.FakeEngine) else LAYERS
    assert [p.layers_loaded for p in seen] == list(range(total + 1))
    assert {p.layers_total for p in seen} == {total}
    assert [p.bytes_read for p in seen] == sorted(p.bytes_read for p in seen)
    assert engine.is_loaded
    assert engine.memory_bytes > 0


def test_an_unloaded_engine_takes_no_memory(engine: Engine) -> None:
    engine.unload()
    assert not engine.is_loaded
    assert engine.memory_bytes == 0


def test_a_run_ends_at_max_tokens(engine: Engine) -> None:
    assert len(run(engine, 5, temperature=0.0)) == 5
    assert len(run(engine, 1, temperature=0.0)) == 1


def test_an_ended_run_gives_no_more_tokens(engine: Engine) -> None:
    ended = engine.start(PROMPT, Decoding(max_tokens=2), lambda: None)
    assert len(collect(ended)) == 2
    assert ended.next_token(0.0) is None


def test_greedy_runs_are_equal_whatever_ran_between(engine: Engine) -> None:
    first = run(engine, temperature=0.0)
    run(engine, temperature=1.5)
    run(engine, temperature=1.5, seed=3)
    assert run(engine, temperature=0.0) == first
    assert run(engine, temperature=1.0, top_k=1) == first


def test_equal_seeds_give_equal_tokens_and_others_do_not(engine: Engine) -> None:
    first = run(engine, seed=7)
    assert run(engine, seed=7) == first
    run(engine)
    assert run(engine, seed=7) == first
    assert run(engine, seed=8) != first


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_outermost_seeds_are_seeds_too(engine: Engine, seed: int) -> None:
    assert run(engine, seed=seed) == run(engine, seed=seed)


def test_a_run_without_a_seed_does_not_continue_a_seeded_sequence(engine: Engine) -> None:
    run(engine, seed=7)
    first = run(engine)
    run(engine, seed=7)
    assert run(engine) != first


def test_a_stop_token_ends_the_run_and_is_not_given(engine: Engine) -> None:
    tokens = run(engine, temperature=0.0)
    stop = tokens[3]
    expected = tokens[: tokens.index(stop)]
    assert run(engine, temperature=0.0, stop_token_ids=frozenset({stop})) == expected


def test_a_cancelled_run_gives_nothing_more_and_lets_the_engine_go(engine: Engine) -> None:
    released: list[str] = []
    cancelled = engine.start(PROMPT, Decoding(max_tokens=200), lambda: released.append("x"))
    assert cancelled.next_token(PATIENCE_S) is not None
    cancelled.cancel()
    assert cancelled.next_token(PATIENCE_S) is None
    assert cancelled.wait_stopped(PATIENCE_S)
    assert released == ["x"]
    assert len(run(engine, 3)) == 3


def test_waiting_for_a_token_ends_in_time(engine: Engine) -> None:
    waiting = engine.start(PROMPT, Decoding(max_tokens=200), lambda: None)
    with pytest.raises(TimeoutError):
        waiting.next_token(0.0)
    waiting.cancel()
    assert waiting.wait_stopped(PATIENCE_S)


def test_a_failing_run_raises_and_is_released(engine: Engine) -> None:
    released: list[str] = []
    failing = engine.start([], Decoding(max_tokens=3), lambda: released.append("x"))
    with pytest.raises(InferenceFailed):
        failing.next_token(PATIENCE_S)
    assert failing.wait_stopped(PATIENCE_S)
    assert released == ["x"]
    assert len(run(engine, 3)) == 3


def test_several_runs_at_once_do_not_disturb_each_other(make: Callable[..., Engine]) -> None:
    engine = loaded(make(slots=3))
    alone = run(engine, 60, temperature=0.0)
    seeded = run(engine, 60, seed=5)
    started = [
        engine.start(PROMPT, Decoding(max_tokens=60, **how), lambda: None)
        for how in ({"temperature": 0.0}, {"seed": 5}, {"temperature": 0.0}, {"seed": 5}, {})
    ]
    results = [collect(each) for each in started]
    assert results[0] == results[2] == alone
    assert results[1] == results[3] == seeded
    assert len(results[4]) == 60


def test_runs_of_different_lengths_give_what_they_give_alone(make: Callable[..., Engine]) -> None:
    asked = [
        (["a"] * length, limit) for length, limit in ((1, 9), (3, 30), (3, 5), (40, 20), (41, 1), (90, 60))
    ]
    alone = []
    engine = loaded(make(slots=1))
    for prompt, limit in asked:
        alone.append(collect(engine.start(prompt, Decoding(limit, temperature=0.0), lambda: None)))
    together = loaded(make(slots=len(asked)))
    runs = [together.start(prompt, Decoding(limit, temperature=0.0), lambda: None) for prompt, limit in asked]
    assert [collect(each) for each in runs] == alone


def test_a_run_is_over_before_the_rest_of_its_batch(make: Callable[..., Engine]) -> None:
    engine = loaded(make(slots=2))
    ended: list[str] = []
    short = engine.start(PROMPT, Decoding(2, temperature=0.0), lambda: ended.append("short"))
    long = engine.start(PROMPT, Decoding(400, temperature=0.0), lambda: ended.append("long"))
    assert len(collect(short)) == 2
    assert short.wait_stopped(PATIENCE_S)
    assert ended == ["short"]
    long.cancel()
    assert long.wait_stopped(PATIENCE_S)
    assert ended == ["short", "long"]


def test_a_cancelled_run_does_not_disturb_its_batch(make: Callable[..., Engine]) -> None:
    engine = loaded(make(slots=3))
    alone = run(engine, 60, temperature=0.0)
    runs = [engine.start(PROMPT, Decoding(60, temperature=0.0), lambda: None) for _ in range(3)]
    assert runs[1].next_token(PATIENCE_S) == alone[0]
    runs[1].cancel()
    assert runs[1].wait_stopped(PATIENCE_S)
    assert [collect(runs[0]), collect(runs[2])] == [alone, alone]


def test_a_run_that_waits_for_its_turn_can_be_cancelled(make: Callable[..., Engine]) -> None:
    engine = loaded(make(slots=2))
    run(engine, 2)
    long = engine.start(PROMPT, Decoding(max_tokens=200), lambda: None)
    assert long.next_token(PATIENCE_S) is not None
    waiting = engine.start(PROMPT, Decoding(max_tokens=200, seed=1), lambda: None)
    waiting.cancel()
    assert waiting.wait_stopped(PATIENCE_S)
    long.cancel()
    assert long.wait_stopped(PATIENCE_S)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1e-40},
        {"temperature": 2.0},
        {"top_p": 1e-300},
        {"top_k": 1000},
        {"top_k": 1000, "top_p": 0.5},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 2.0},
    ],
)
def test_every_allowed_value_generates(engine: Engine, how: dict[str, float]) -> None:
    assert len(run(engine, 4, **how)) == 4
