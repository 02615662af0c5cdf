"""Models of the node itself: what counts as one, and what is said of what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import parse_model_ref
from rbee.models.gguf_summaries import summary_of
from rbee.models.providers import RemoteModel
from rbee.models.providers.local_file import LocalFileProvider
from support.gguf_factory import TinyModel


def _resolve(path: Path) -> RemoteModel:
    return LocalFileProvider().resolve(parse_model_ref(f"file:{path}"))


def test_a_gguf_needs_extension_and_magic(tmp_path: Path) -> None:
    good, unnamed, text = (tmp_path / name for name in ("good.gguf", "same.bin", "text.gguf"))
    good.write_bytes(b"GGUF" + bytes(100))
    unnamed.write_bytes(good.read_bytes())
    text.write_text("I am no model")
    found = _resolve(good)
    assert (found.local_path, found.size_bytes, found.sha256, found.download) == (good, 104, None, None)
    for path in (unnamed, text):
        with pytest.raises(ModelIncompatible, match=path.name):
            _resolve(path)


def test_an_empty_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelIncompatible):
        _resolve(tmp_path / "empty.gguf")


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "tokenizer.model"])
def test_a_folder_with_model_config_and_tokenizer_is_a_model(tmp_path: Path, tokenizer: str) -> None:
    for name in ("model.bin", "config.json", tokenizer):
        (tmp_path / name).write_bytes(b"12345")
    found = _resolve(tmp_path)
    assert (found.local_path, found.size_bytes) == (tmp_path, 15)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (("config.json", "tokenizer.json"), "model.bin"),
        (("model.bin", "tokenizer.json"), "config.json"),
        (("model.bin", "config.json"), "tokenizer.json or tokenizer.model"),
    ],
)
def test_an_incomplete_folder_is_refused_and_the_missing_named(
    tmp_path: Path, present: tuple[str, ...], missing: str
) -> None:
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(ModelIncompatible, match=missing) as caught:
        _resolve(tmp_path)
    assert caught.value.details["missing"] == [missing]


def test_a_path_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        _resolve(tmp_path / "absent.gguf")


def test_a_summary_is_read_once_and_again_after_a_change(tmp_path: Path) -> None:
    path = TinyModel(context=512).write(tmp_path / "tiny.gguf")
    first = summary_of(path)
    assert first is not None
    assert (first.architecture, first.context_length, first.block_count) == ("llama", 512, 2)
    assert summary_of(path) is first
    TinyModel(context=1024).write(path)
    second = summary_of(path)
    assert second is not None
    assert second.context_length == 1024


def test_what_has_no_header_has_no_summary(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert summary_of(broken) is None
    assert summary_of(tmp_path) is None
    assert summary_of(tmp_path / "absent.gguf") is None
