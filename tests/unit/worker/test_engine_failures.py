"""What the engine's own errors become, and how a folder is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import InferenceFailed, MemoryExhausted, RbeeError
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.adapters.engine_memory import is_out_of_memory
from rbee.worker.engine_start import compute_type
from rbee.worker.ports import Decoding
from support.tiny_ct2 import write_tiny_model


class BreakingGenerator:
    """A generator of the library that fails, or ends without a reason, after two tokens."""

    compute_type = "float32"

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def generate_batch(self, _prompts: Any, *, callback: Any, **_options: Any) -> None:
        for token_id in (5, 6):
            callback(type("Step", (), {"token_id": token_id, "batch_id": 0}))
        if self._error is not None:
            raise self._error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def outcome(model: Path, error: BaseException | None) -> RbeeError:
    """The error that a run ends with, after its two tokens."""
    engine = CTranslate2Engine(
        model, worker_id="w-1", device="cpu", device_index=0, compute_type="float32", slots=1, cores=1
    )
    engine.load(lambda _progress: None)
    engine._generator = BreakingGenerator(error)
    run = engine.start(["a"], Decoding(max_tokens=9), lambda: None)
    assert [run.next_token(10), run.next_token(10)] == [5, 6]
    with pytest.raises(RbeeError) as ended:
        run.next_token(10)
    assert run.next_token(0) is None
    return ended.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("CUDA failed with error out of memory"),
        RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_running_out_of_memory_is_told_with_amounts(model: Path, error: BaseException) -> None:
    told = outcome(model, error)
    assert isinstance(told, MemoryExhausted)
    assert told.details["required"] > told.details["available"] > 0
    assert told.details["resource"] == "ram"


@pytest.mark.parametrize("error", [RuntimeError("oneDNN failed"), IndexError("vector"), ValueError("bad")])
def test_any_other_error_is_a_failed_inference(model: Path, error: BaseException) -> None:
    told = outcome(model, error)
    assert isinstance(told, InferenceFailed)
    assert str(error) in told.message
    assert told.details == {"worker_id": "w-1"}


def test_an_answer_that_ends_without_a_reason_is_a_failure(model: Path) -> None:
    assert isinstance(outcome(model, None), InferenceFailed)


def test_a_defect_of_ours_does_not_look_like_a_complete_answer(model: Path) -> None:
    assert isinstance(outcome(model, AttributeError("no such thing")), InferenceFailed)


def test_ordinary_errors_are_not_taken_for_want_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("Unable to open file 'model.bin'"))


def test_a_converted_folder_is_loaded_with_the_type_it_was_converted_to(tmp_path: Path) -> None:
    (tmp_path / "rbee.json").write_text(json.dumps({"compute_type": "int8"}))
    assert compute_type(tmp_path, "auto") == "int8"
    assert compute_type(tmp_path, "float32") == "int8"


def test_another_folder_is_loaded_as_configured_else_as_it_is(tmp_path: Path) -> None:
    assert compute_type(tmp_path, "auto") == "default"
    assert compute_type(tmp_path, "int8") == "int8"
