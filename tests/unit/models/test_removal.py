"""Removal takes only what is ours and unused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.core.references import parse_model_ref
from rbee.models.catalog import Catalog
from rbee.models.file_notes import FileNote, read_note, write_note
from rbee.models.removal import remove_model

REPO = parse_model_ref("hf:org/repo")
QUANT = parse_model_ref("hf:org/repo:Q4_0")
DIGEST = "cd" * 32


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "models.db")


def _write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    return path


def _conversion(models_dir: Path, digest: str = DIGEST) -> Path:
    return _write(models_dir / "ct2" / f"{digest}-float32" / "model.bin").parent


def test_remove_takes_file_conversions_and_row(models_dir: Path, catalog: Catalog) -> None:
    file = _write(models_dir / "hf" / "org" / "repo" / "a.gguf")
    _write(file.with_name("a.gguf.partial"))
    conversion = _conversion(models_dir)
    other = _conversion(models_dir, "ef" * 32)
    catalog.add(REPO, file, 4, DIGEST)
    removed = remove_model(models_dir, catalog, REPO)
    assert removed is not None
    assert removed.ref == REPO
    assert not (models_dir / "hf" / "org").exists()
    assert not conversion.exists()
    assert sorted(path.name for path in (models_dir / "ct2").iterdir()) == [other.name]
    assert catalog.list() == ()
    assert remove_model(models_dir, catalog, REPO) is None


def test_remove_keeps_what_another_reference_uses(models_dir: Path, catalog: Catalog) -> None:
    file = _write(models_dir / "hf" / "org" / "repo" / "a.gguf")
    conversion = _conversion(models_dir)
    catalog.add(REPO, file, 4, DIGEST)
    catalog.add(QUANT, file, 4, DIGEST)
    remove_model(models_dir, catalog, REPO)
    assert file.exists()
    assert conversion.exists()
    remove_model(models_dir, catalog, QUANT)
    assert not file.exists()
    assert not conversion.exists()


def test_remove_of_a_registered_file_takes_row_and_conversions_only(
    models_dir: Path, catalog: Catalog
) -> None:
    file = _write(models_dir / "own" / "a.gguf")
    ref = parse_model_ref(f"file:{file}")
    conversion = _conversion(models_dir)
    catalog.add(ref, file, 4, DIGEST)
    remove_model(models_dir, catalog, ref)
    assert file.exists()
    assert not conversion.exists()
    assert catalog.find(ref) is None


def test_remove_never_follows_a_path_out_of_the_models_directory(
    models_dir: Path, catalog: Catalog, tmp_path: Path
) -> None:
    cached = _write(tmp_path / "cache" / "blob.gguf")
    link = models_dir / "hf" / "org" / "repo" / "a.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(cached)
    catalog.add(REPO, cached, 4)
    catalog.add(QUANT, link, 4)
    remove_model(models_dir, catalog, REPO)
    remove_model(models_dir, catalog, QUANT)
    assert cached.exists()
    assert catalog.list() == ()


def test_remove_takes_all_parts_of_a_split_model_and_its_note(models_dir: Path, catalog: Catalog) -> None:
    folder = models_dir / "hf" / "org" / "repo"
    parts = [_write(folder / f"a-0000{number}-of-00003.gguf") for number in (1, 2, 3)]
    write_note(parts[0], FileNote((str(REPO),), 12, DIGEST, ("1" * 64, "2" * 64, "3" * 64)))
    catalog.add(REPO, parts[0], 12, DIGEST, part_digests=["1" * 64, "2" * 64, "3" * 64])
    remove_model(models_dir, catalog, REPO)
    assert list(models_dir.iterdir()) == []


def test_a_removed_reference_leaves_the_note_of_a_shared_file(models_dir: Path, catalog: Catalog) -> None:
    file = _write(models_dir / "hf" / "org" / "repo" / "a.gguf")
    for ref in (REPO, QUANT):
        write_note(file, FileNote((str(ref),), 4, DIGEST))
        catalog.add(ref, file, 4, DIGEST)
    remove_model(models_dir, catalog, REPO)
    note = read_note(file)
    assert note is not None
    assert note.references == (str(QUANT),)
