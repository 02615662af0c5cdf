"""Models split over several files: read as one, converted as one, refused when they are not all of one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import parse_model_ref
from rbee.models.conversion import convert
from rbee.models.file_digests import digests_of
from rbee.models.gguf_file import read_gguf
from rbee.models.gguf_summaries import summary_of
from rbee.models.providers.local_file import LocalFileProvider
from rbee.models.split_files import combined_digest, parts_of, split_name
from support.gguf_factory import TinyModel, add_metadata

MODEL = TinyModel(layers=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODEL.write(tmp_path_factory.mktemp("whole") / "tiny-F32.gguf")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODEL.write(tmp_path_factory.mktemp("split") / "tiny-F32.gguf", tensors_per_part=8)


@pytest.fixture
def first(pristine: Path, tmp_path: Path) -> Path:
    """The first of the parts, in a folder that the test may change."""
    return Path(shutil.copytree(pristine.parent, tmp_path / "model")) / pristine.name


def test_the_parts_are_those_of_llama_cpps_naming() -> None:
    name = split_name("sub/m-Q4_0-00002-of-00003.gguf")
    assert name is not None
    assert (name.stem, name.number, name.count) == ("sub/m-Q4_0", 2, 3)
    assert name.parts[0] == "sub/m-Q4_0-00001-of-00003.gguf"
    for whole_name in ("m.gguf", "m-00001-of-00001.gguf", "m-1-of-3.gguf", "-00001-of-00002.gguf"):
        assert split_name(whole_name) is None


def test_all_parts_are_read_as_the_whole_file(first: Path, whole: Path) -> None:
    assert len(parts_of(first)) == 4
    split, one = read_gguf(first), read_gguf(whole)
    assert set(split.tensors) == set(one.tensors)
    assert len({tensor.path for tensor in split.tensors.values()}) == 4
    for name in one.tensors:
        assert (split.tensor_float32(name) == one.tensor_float32(name)).all(), name
    assert split.size_bytes == sum(part.stat().st_size for part in parts_of(first))
    assert one.header_bytes == min(tensor.entry.offset for tensor in one.tensors.values())
    assert one.header_bytes < split.header_bytes < 2 * one.header_bytes, "small headers of the further parts"
    assert split.summary() == one.summary() == summary_of(first)


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
def test_a_split_model_is_converted_to_the_same_bytes_as_the_whole(
    first: Path, whole: Path, tmp_path: Path, compute_type: str
) -> None:
    folders = [
        convert(source, tmp_path / "models", compute_type, on_progress=lambda _done, _total: None)
        for source in (first, whole)
    ]
    assert folders[0] != folders[1]
    for name in ("model.bin", "config.json", "vocabulary.json", "tokenizer.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_the_digest_stands_for_every_byte_of_every_part(first: Path) -> None:
    digest, part_digests = digests_of(first)
    expected = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts_of(first)]
    assert list(part_digests) == expected
    assert digest == combined_digest(expected)
    assert digest == hashlib.sha256("".join(f"{line}\n" for line in expected).encode()).hexdigest()
    last = parts_of(first)[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    assert digests_of(first)[0] != digest


def refusal(path: Path) -> ModelIncompatible:
    with pytest.raises(ModelIncompatible) as caught:
        read_gguf(path)
    return caught.value


def test_a_missing_part_is_named(first: Path) -> None:
    assert summary_of(first) is not None
    parts_of(first)[2].unlink()
    error = refusal(first)
    assert error.message == f"A part of the model is missing: {parts_of(first)[2].name}"
    assert error.details["missing"] == parts_of(first)[2].name
    assert summary_of(first) is None, "what was read when it was complete no longer counts"


def test_another_part_than_the_first_is_refused_and_the_first_named(first: Path) -> None:
    error = refusal(parts_of(first)[1])
    assert error.message == "This file is part 2 of 4 of a model"
    assert first.name in str(error.suggestion)


def test_a_part_cut_short_is_refused_by_its_name(first: Path) -> None:
    part = parts_of(first)[1]
    part.write_bytes(part.read_bytes()[:-100])
    error = refusal(first)
    assert "truncated" in error.message
    assert part.name in error.message


def rewritten(path: Path, metadata: dict[str, Any], tensors: tuple[str, ...] = ("t",)) -> None:
    """A small part with exactly this metadata and these tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add_metadata(writer, key, value)
    for name in tensors:
        writer.add_tensor(name, MODEL.all_tensors()["output_norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def swapped(first: Path) -> None:
    a, b = parts_of(first)[1:3]
    (first.parent / "x").write_bytes(a.read_bytes())
    a.write_bytes(b.read_bytes())
    b.write_bytes((first.parent / "x").read_bytes())


def of_another_split(first: Path) -> None:
    rewritten(parts_of(first)[3], {"split.no": 3, "split.count": 5, "split.tensors.count": 30})


def without_tensors(first: Path) -> None:
    rewritten(parts_of(first)[3], {"split.no": 3, "split.count": 4}, ("one.more",))


def twice_the_same(first: Path) -> None:
    rewritten(parts_of(first)[3], {"split.no": 3, "split.count": 4}, ("token_embd.weight",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swapped, "is no part of it: its split.no is 2"),
        (of_another_split, "is no part of it: its split.count is 5"),
        (without_tensors, r"it announces \d+ tensors, and its parts have"),
        (twice_the_same, "the tensor 'token_embd.weight' is in two parts of the model"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    first: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(first)
    with pytest.raises(ModelIncompatible, match=reason):
        read_gguf(first)


def test_a_name_and_metadata_that_disagree_about_parts_are_refused(first: Path, whole: Path) -> None:
    renamed = first.rename(first.with_name("model.gguf"))
    assert "it is one of 4 parts, but is not named" in refusal(renamed).message
    misnamed = first.with_name("other-00001-of-00002.gguf")
    shutil.copy(whole, misnamed)
    assert "its name says that it is one of 2 parts, its metadata of 1" in refusal(misnamed).message
    part = parts_of(first)[1].rename(first.with_name("second.gguf"))
    assert "part 2 of 4" in refusal(part).message


def test_a_single_part_is_a_whole_model(whole: Path, tmp_path: Path) -> None:
    only = tmp_path / "tiny-00001-of-00001.gguf"
    shutil.copy(whole, only)
    assert len(read_gguf(only).tensors) == len(read_gguf(whole).tensors)


def test_a_split_model_on_the_node_is_registered_by_its_first_part(first: Path) -> None:
    found = LocalFileProvider().resolve(parse_model_ref(f"file:{first}"))
    assert found.local_path == first
    assert found.size_bytes == sum(part.stat().st_size for part in parts_of(first))
    with pytest.raises(ModelIncompatible, match="part 3 of 4"):
        LocalFileProvider().resolve(parse_model_ref(f"file:{parts_of(first)[2]}"))
    parts_of(first)[1].unlink()
    with pytest.raises(ModelIncompatible, match="part of the model is missing"):
        LocalFileProvider().resolve(parse_model_ref(f"file:{first}"))
    first.unlink()
    with pytest.raises(ModelNotFound):
        LocalFileProvider().resolve(parse_model_ref(f"file:{first}"))
