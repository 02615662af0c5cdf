"""The models directory: where fetched files go, and what its limits are."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rbee.core.errors import DiskFull, ModelNotFound, ServiceUnavailable
from rbee.core.references import parse_model_ref
from rbee.models.storage import require_disk, target_for, write_error

REPO = parse_model_ref("hf:org/repo")
QUANT = parse_model_ref("hf:org/repo:Q4_0")
DIGEST = "cd" * 32


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_a_fetched_file_lies_under_provider_and_reference(models_dir: Path) -> None:
    pypi = parse_model_ref("pypi:pkg==1.0/a.gguf")
    assert target_for(models_dir, REPO, "a.gguf") == models_dir / "hf" / "org" / "repo" / "a.gguf"
    assert target_for(models_dir, pypi, "a.gguf") == models_dir / "pypi" / "pkg==1.0" / "a.gguf"


def test_files_of_one_name_in_two_folders_of_a_repository_do_not_collide(models_dir: Path) -> None:
    paths = {target_for(models_dir, REPO, f"{folder}model.gguf") for folder in ("", "Q4_0/", "Q8_0/")}
    assert len(paths) == 3
    assert {path.name for path in paths} == {"model.gguf"}


@pytest.mark.parametrize("filename", ["../../etc/a.gguf", "/etc/a.gguf", "..\\..\\a.gguf", "x/../../a.gguf"])
def test_a_source_cannot_name_a_path_outside_the_models_directory(models_dir: Path, filename: str) -> None:
    target = target_for(models_dir, REPO, filename)
    assert target.name == "a.gguf"
    assert models_dir in target.resolve().parents


@pytest.mark.parametrize("filename", ["", "..", "sub/", "a\x00.gguf", "a\n.gguf", "x" * 250])
def test_a_name_that_is_no_file_name_is_refused(models_dir: Path, filename: str) -> None:
    with pytest.raises(ModelNotFound):
        target_for(models_dir, REPO, filename)


def test_a_link_out_of_the_models_directory_is_refused(models_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (models_dir / "hf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServiceUnavailable, match="link"):
        target_for(models_dir, REPO, "a.gguf")


def test_disk_that_does_not_cover_the_need_is_refused_in_mb(tmp_path: Path) -> None:
    require_disk(tmp_path, 1)
    with pytest.raises(DiskFull) as caught:
        require_disk(tmp_path, 2**60 + 1)
    assert caught.value.details["required"] == 2**40 + 1
    assert 0 <= caught.value.details["available"] < 2**40


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_finds_no_room_is_disk_full_with_the_need(tmp_path: Path, number: int) -> None:
    error = write_error(OSError(number, "no room"), tmp_path / "a.gguf", 5 * 1024 * 1024 + 1)
    assert isinstance(error, DiskFull)
    assert error.details["required"] == 6


def test_a_write_that_fails_otherwise_names_file_and_reason(tmp_path: Path) -> None:
    error = write_error(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "a.gguf", 1)
    assert isinstance(error, ServiceUnavailable)
    assert error.message == f"Cannot write {tmp_path}/a.gguf: Permission denied"
