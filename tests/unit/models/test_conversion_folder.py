"""A converted folder is complete or not there, made once, and what it says of the model is true."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import pytest

from rbee.core.errors import DiskFull, InvalidRequest, MemoryExhausted, ModelIncompatible, ModelNotFound
from rbee.models import conversion, storage
from rbee.models.conversion import (
    choose_compute_type,
    convert,
    converted_folder,
    estimate_converted_bytes,
)
from rbee.models.conversion_lock import ConversionProgress, conversion_owner, exclusive_conversion
from rbee.models.file_digests import digests_of
from rbee.models.gguf_file import read_gguf
from rbee.models.sample_texts import SampleSet, digest_of
from rbee.models.storage import sha256_of_file
from support.gguf_factory import TinyModel

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30
# Converts argv[1] into argv[2], prints a line per progress and waits, at the first, for a line on stdin.
CONVERT_AND_WAIT = """
import sys
from pathlib import Path
from rbee.models.conversion import convert
def progress(done, total):
    print(done, total, flush=True)
    if done == 0:
        sys.stdin.readline()
print(convert(Path(sys.argv[1]), Path(sys.argv[2]), "int8", on_progress=progress), flush=True)
"""


def silent(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return TinyModel().write(tmp_path / "model.gguf")


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def converter(source: Path, models_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT_AND_WAIT, str(source), str(models_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "services")},
    )


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def test_the_folder_is_named_after_content_and_type_and_loads(source: Path, models_dir: Path) -> None:
    folder = convert(source, models_dir, "int8", on_progress=silent)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert folder == models_dir / "ct2" / f"{digest}-int8"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.bin", "config.json", "vocabulary.json", "tokenizer.json", "rbee.json"}
    generator = ctranslate2.Generator(str(folder))
    tokens = json.loads((folder / "vocabulary.json").read_text())
    (result,) = generator.generate_batch([tokens[5:9]], max_length=4, include_prompt_in_result=False)
    assert len(result.sequences_ids[0]) == 4


def test_the_description_repeats_what_the_file_says(source: Path, models_dir: Path) -> None:
    folder = convert(source, models_dir, "int8_float32", on_progress=silent)
    described = json.loads((folder / "rbee.json").read_text())
    file = read_gguf(source)
    assert described["source_sha256"] == sha256_of_file(source)
    assert described["source_size_bytes"] == source.stat().st_size
    assert described["compute_type"] == "int8_float32"
    assert described["parameters"] == file.parameters
    summary = file.summary()
    for key in (
        "architecture",
        "quantization",
        "context_length",
        "block_count",
        "vocab_size",
        "eos_token_id",
    ):
        assert described[key] == getattr(summary, key), key
    assert described["bos_token_id"] == 0
    assert described["stop_token_ids"] == [1]
    assert described["tokenizer"] == "bpe"
    assert described["add_bos"] is False
    assert described["context_limited_by"] is None


def test_a_second_conversion_returns_the_folder_without_work(source: Path, models_dir: Path) -> None:
    folder = convert(source, models_dir, "int8", on_progress=silent)
    before = (folder / "model.bin").stat().st_mtime_ns
    seen: list[int] = []
    assert convert(source, models_dir, "int8", on_progress=lambda done, _: seen.append(done)) == folder
    assert seen == []
    assert (folder / "model.bin").stat().st_mtime_ns == before


def test_compute_types_of_one_model_lie_side_by_side(source: Path, models_dir: Path) -> None:
    folders = {convert(source, models_dir, kind, on_progress=silent) for kind in ("int8", "float32")}
    assert len(folders) == 2
    digest = sha256_of_file(source)
    assert converted_folder(models_dir, digest, "int8") in folders
    assert converted_folder(models_dir, digest, "float16") is None


def test_a_folder_of_another_recipe_is_converted_again(
    source: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "RECIPE", 0)
    folder = convert(source, models_dir, "int8", on_progress=silent)
    (folder / "old").touch()
    monkeypatch.undo()
    assert converted_folder(models_dir, sha256_of_file(source), "int8") is None
    assert convert(source, models_dir, "int8", on_progress=silent) == folder
    assert not (folder / "old").exists()


@pytest.mark.parametrize("name", ["model.bin", "vocabulary.json", "tokenizer.json", "rbee.json"])
def test_a_damaged_folder_is_converted_again(source: Path, models_dir: Path, name: str) -> None:
    folder = convert(source, models_dir, "int8", on_progress=silent)
    intact = (folder / name).read_bytes()
    (folder / name).write_bytes(intact[: len(intact) // 2])
    assert converted_folder(models_dir, sha256_of_file(source), "int8") is None
    convert(source, models_dir, "int8", on_progress=silent)
    assert (folder / name).read_bytes() == intact


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (MemoryError(), MemoryExhausted),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_interrupted_conversion_leaves_nothing_half_made(
    source: Path, models_dir: Path, failure: BaseException, expected: type[BaseException]
) -> None:
    def fail_half_way(done: int, total: int) -> None:
        if done > total // 2:
            raise failure

    with pytest.raises(expected):
        convert(source, models_dir, "int8", on_progress=fail_half_way)
    assert [path.name for path in (models_dir / "ct2").iterdir()] == [".locks"]
    assert convert(source, models_dir, "int8", on_progress=silent).is_dir()


def test_too_little_disk_is_refused_before_anything_is_written(
    source: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = storage.shutil.disk_usage(source.parent)._replace(free=1000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _path: usage)
    seen: list[int] = []
    with pytest.raises(DiskFull) as caught:
        convert(source, models_dir, "float32", on_progress=lambda done, _: seen.append(done))
    assert caught.value.details["available"] == 0
    assert caught.value.details["required"] > 0
    assert seen == []


def test_a_model_that_cannot_be_converted_leaves_nothing(tmp_path: Path, models_dir: Path) -> None:
    source = TinyModel(metadata={"expert_count": 8}).write(tmp_path / "moe.gguf")
    with pytest.raises(ModelIncompatible):
        convert(source, models_dir, "int8", on_progress=silent)
    assert [path.name for path in (models_dir / "ct2").iterdir()] == [".locks"]


def test_more_embeddings_than_tokens_are_refused(tmp_path: Path, models_dir: Path) -> None:
    model = TinyModel()
    tokens = model.all_metadata()["tokenizer.ggml.tokens"][:-1]
    types = model.all_metadata()["tokenizer.ggml.token_type"][:-1]
    tensors = {name: model.all_tensors()[name] for name in ("token_embd.weight", "output.weight")}
    merges = model.all_metadata()["tokenizer.ggml.merges"][:-1]
    changed = model.with_(
        metadata={
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges,
        },
        tensors=tensors,
    )
    with pytest.raises(ModelIncompatible, match="200 embeddings and 199 tokens"):
        convert(changed.write(tmp_path / "m.gguf"), models_dir, "int8", on_progress=silent)


def test_two_processes_convert_once_and_get_the_same_folder(source: Path, models_dir: Path) -> None:
    with converter(source, models_dir) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("0 ")
        key = f"{sha256_of_file(source)}-int8"
        owner = conversion_owner(models_dir / "ct2", key)
        assert owner is not None
        assert owner.pid == first.pid
        with converter(source, models_dir) as second:
            assert second.stdout is not None
            _, errors = first.communicate("go\n", timeout=30)
            answered, _ = second.communicate("", timeout=30)
    assert errors is None
    folder = models_dir / "ct2" / key
    assert answered.splitlines()[-1] == str(folder)
    # The second only ever saw the end: it did no work of its own.
    assert len(answered.splitlines()) <= 3
    assert conversion_owner(models_dir / "ct2", key) is None


def test_a_killed_conversion_gives_way_and_its_leftovers_go(source: Path, models_dir: Path) -> None:
    with converter(source, models_dir) as doomed:
        assert doomed.stdout is not None
        doomed.stdout.readline()
        ct2 = models_dir / "ct2"
        wait_until(lambda: any(ct2.glob(".*.partial")))
        doomed.send_signal(signal.SIGKILL)
        doomed.wait(10)
    assert conversion_owner(ct2, f"{sha256_of_file(source)}-int8") is None
    other = TinyModel(seed=1).write(source.with_name("other.gguf"))
    convert(other, models_dir, "int8", on_progress=silent)
    assert not list(ct2.glob(".*.partial"))
    assert convert(source, models_dir, "int8", on_progress=silent).is_dir()


def test_progress_never_goes_backwards_when_work_starts_again(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {"layers": [], "tensors": []}
    progress = ConversionProgress(
        converting=lambda done, _: seen["tensors"].append(done),
        calibrating=lambda done, _: seen["layers"].append(done),
    )
    with exclusive_conversion(tmp_path, "key", progress) as report:
        for done in (0, 2, 1, 4):
            report.calibrating(done, 4)
        for done in (0, 3, 5, 0, 2, 6):
            report.converting(done, 6)
    assert seen == {"layers": [0, 2, 4], "tensors": [0, 3, 5, 6]}


def test_an_estimate_is_close_to_the_result_and_not_below_it(tmp_path: Path, models_dir: Path) -> None:
    model = TinyModel(layers=6, width=256, heads=4, heads_kv=4, head_dim=64, inner=512)
    source = model.write(tmp_path / "m.gguf")
    for kind in ("float32", "int8", "float16"):
        folder = convert(source, models_dir, kind, on_progress=silent)
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size <= estimate_converted_bytes(read_gguf(source), kind) <= size + 1.2 * 2**20


def test_hashing_reports_bytes_and_gives_the_sha256(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(9 * 2**20))
    read: list[int] = []
    assert digests_of(file, read.append) == (hashlib.sha256(file.read_bytes()).hexdigest(), ())
    assert sum(read) == 9 * 2**20
    assert len(read) > 1
    with pytest.raises(ModelNotFound):
        digests_of(tmp_path / "gone")


@pytest.mark.parametrize(
    ("backend", "float32_bytes", "available", "expected"),
    [
        ("cpu", 2**23 - 1, 8 * GIB, "float32"),
        ("cpu", 2**23, 8 * GIB, "int8"),
        ("cpu", GIB // 2, 8 * GIB, "int8"),
        ("cpu", 2**22, 2**22, "int8"),
        ("cuda", GIB // 2, 8 * GIB, "int8_float16"),
        ("cuda", 30 * GIB, 8 * GIB, "int8_float16"),
    ],
)
def test_auto_is_float32_on_a_cpu_only_where_int8_is_not_faster(
    backend: str, float32_bytes: int, available: int, expected: str
) -> None:
    assert choose_compute_type("auto", backend, float32_bytes, available) == expected


def test_auto_takes_the_size_from_the_models_parameters(source: Path) -> None:
    assert choose_compute_type("auto", "cpu", read_gguf(source), GIB) == "float32"
    assert choose_compute_type("auto", "cpu", read_gguf(source), 2**16) == "int8"


def test_an_explicit_compute_type_must_be_supported_by_the_device() -> None:
    assert choose_compute_type("int8", "cpu", GIB, GIB) == "int8"
    for setting in ("float64", "", "int8_float8"):
        with pytest.raises(InvalidRequest, match=r"worker\.compute_type") as caught:
            choose_compute_type(setting, "cpu", GIB, GIB)
        assert caught.value.details["errors"][0]["field"] == "worker.compute_type"


def test_an_unknown_compute_type_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"worker\.compute_type"):
        convert(tmp_path / "none.gguf", tmp_path, "int4", on_progress=silent)


def test_int8_is_smoothed_says_so_and_is_the_same_bytes_every_time(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folders = [
        convert(source, tmp_path / name, "int8", on_progress=silent, on_calibrating=lambda *p: seen.append(p))
        for name in ("a", "b")
    ]
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} for folder in folders
    )
    assert first == second
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0
    smoothing = json.loads(first["rbee.json"])["smoothing"]
    assert smoothing["calibration"]["sha256"] == digest_of(SampleSet.CALIBRATION)
    assert smoothing["calibration"]["tokens"] > 100
    assert {"attention input", "projection input"} <= set(smoothing["exponents"])


def test_what_does_not_quantise_activations_is_not_calibrated(source: Path, models_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    for kind in ("float32", "float16", "int16"):
        folder = convert(
            source, models_dir, kind, on_progress=silent, on_calibrating=lambda *p: seen.append(p)
        )
        assert "smoothing" not in json.loads((folder / "rbee.json").read_text())
    assert seen == []
