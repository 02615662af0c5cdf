"""What a run says of itself while the engine serves others."""

from pathlib import Path

from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.ports import Decoding
from support.tiny_ct2 import write_tiny_model

PATIENCE_S = 20.0


def loaded_engine(folder: Path) -> CTranslate2Engine:
    engine = CTranslate2Engine(
        write_tiny_model(folder, context_length=4096),
        worker_id="w",
        device="cpu",
        device_index=0,
        compute_type="float32",
        slots=2,
        cores=1,
    )
    engine.load(lambda _progress: None)
    return engine


def test_a_seeded_run_waits_for_those_that_sample_and_says_so(tmp_path: Path) -> None:
    engine = loaded_engine(tmp_path)
    long = engine.start(["a", "b"], Decoding(max_tokens=4000), lambda: None)
    assert long.wait_begun(PATIENCE_S)
    assert long.next_token(PATIENCE_S) is not None
    seeded = engine.start(["a", "b"], Decoding(max_tokens=3, seed=1), lambda: None)
    assert not seeded.wait_begun(0.05)
    assert seeded.is_waiting
    long.cancel()
    assert seeded.wait_begun(PATIENCE_S)
    assert not seeded.is_waiting
    assert seeded.next_token(PATIENCE_S) is not None
    seeded.cancel()


def test_a_run_that_is_cancelled_waits_no_more(tmp_path: Path) -> None:
    engine = loaded_engine(tmp_path)
    long = engine.start(["a", "b"], Decoding(max_tokens=4000), lambda: None)
    assert long.next_token(PATIENCE_S) is not None
    seeded = engine.start(["a", "b"], Decoding(max_tokens=3, seed=1), lambda: None)
    seeded.cancel()
    assert seeded.wait_begun(0)
    assert seeded.wait_stopped(PATIENCE_S)
    long.cancel()
    assert long.wait_stopped(PATIENCE_S)
