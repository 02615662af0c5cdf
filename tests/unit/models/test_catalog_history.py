"""A catalog of an older version is brought up, and a damaged or lost one is made again from the disk."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from rbee.core.errors import ServiceUnavailable
from rbee.core.references import parse_model_ref
from rbee.models.catalog import MIGRATIONS, Catalog
from rbee.models.database import Database
from rbee.models.fetching import fetch_model
from rbee.models.file_notes import FileNote, models_on_disk, read_note, write_note
from rbee.models.transfers import RetryPolicy, Transfer
from support.listeners import RecordingListener
from support.model_providers import FakeProvider

OLD = Path(__file__).parent / "data" / "catalog-0001.db"
"""Made by version 0.1.0 before its schema had a history: two references to one file, one to another."""

REPO = parse_model_ref("hf:org/repo")
QUANT = parse_model_ref("hf:org/repo:Q4_0")
CONTENT = b"GGUF" + bytes(96)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "models.db"


def _write(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_catalog_of_the_first_release_keeps_its_rows(database: Path, tmp_path: Path) -> None:
    shutil.copy(OLD, database)
    file = _write(tmp_path / "tiny.Q4_0.gguf")
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE models SET local_path = ? WHERE provider = 'hf'", (str(file),))
    catalog = Catalog(database)
    rows = catalog.list()
    assert [str(row.ref) for row in rows] == [str(QUANT), str(REPO)], "the third one's file is not here"
    row = catalog.find(REPO)
    assert row is not None
    assert (row.id, row.digest, row.downloaded_at_unix) == ("tiny.Q4_0-2", "ab" * 32, 1_769_846_400)
    assert (row.last_used_unix, row.revision, row.part_digests) == (1_769_850_000, None, ())
    catalog.add(REPO, file, 100, "cd" * 32, revision="abc")
    renewed = Catalog(database).find(REPO)
    assert renewed is not None
    assert (renewed.id, renewed.revision) == ("tiny.Q4_0-2", "abc")


def _schema(database: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(database) as raw:
        version = raw.execute("SELECT version_num FROM alembic_version").fetchall()
        assert version == [(MIGRATIONS.head,)]
        # Name, type, not null and primary key of each column; whether an index holds the key unique.
        columns = [row[1:4] + row[5:] for row in raw.execute("PRAGMA table_info(models)")]
        unique = [row[2] for row in raw.execute("PRAGMA index_list(models)")]
    return [*columns, tuple(sorted(unique))]


def test_a_migrated_catalog_has_the_schema_of_a_new_one(database: Path, tmp_path: Path) -> None:
    shutil.copy(OLD, database)
    Catalog(database)
    Catalog(tmp_path / "new.db")
    assert _schema(database) == _schema(tmp_path / "new.db")


def test_a_catalog_of_a_newer_version_is_refused_and_left_alone(database: Path) -> None:
    Catalog(database).add(REPO, _write(database.with_name("a.gguf")), 100)
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ServiceUnavailable, match="newer version") as caught:
        Catalog(database)
    assert "Upgrade" in str(caught.value.suggestion)
    with sqlite3.connect(database) as raw:
        assert raw.execute("SELECT count(*) FROM models").fetchone() == (1,)


def test_a_migration_that_fails_leaves_the_old_catalog_as_it_was(database: Path, tmp_path: Path) -> None:
    shutil.copy(OLD, database)
    metadata = sa.MetaData()
    sa.Table("models", metadata)
    broken = tmp_path / "history"
    shutil.copytree(MIGRATIONS.folder, broken)
    step = broken / "versions" / "v0002_revision_and_parts.py"
    step.write_text(step.read_text().replace("sa.JSON))", "sa.JSON)); op.execute('no sql')"))
    with pytest.raises(ServiceUnavailable):
        Database(database, metadata, type(MIGRATIONS)(broken, MIGRATIONS.head))
    with sqlite3.connect(database) as raw:
        assert "revision" not in {row[1] for row in raw.execute("PRAGMA table_info(models)")}
        assert raw.execute("SELECT count(*) FROM models").fetchone() == (3,)
    assert not database.with_name("models.db.corrupt.backup").exists()
    Catalog(database)
    with sqlite3.connect(database) as raw:
        assert raw.execute("SELECT count(*), max(revision) FROM models").fetchone() == (3, None)


def _fetch(ref_text: str, models_dir: Path, catalog: Catalog) -> Path:
    ref = parse_model_ref(ref_text)
    provider = FakeProvider({ref_text: CONTENT})
    transfer = Transfer(RetryPolicy(), RecordingListener())
    return fetch_model(ref, provider, models_dir, lambda: catalog, transfer)


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_a_lost_catalog_is_made_again_with_every_reference_and_fact(
    database: Path, models_dir: Path, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = Catalog(database, models_dir)
    for text in (str(REPO), str(QUANT), "pypi:pkg==1.0/model.gguf"):
        _fetch(text, models_dir, catalog)
    before = {row.ref: row for row in catalog.list()}
    assert {row.revision for row in before.values()} == {"r1"}
    if loss == "damaged":
        database.write_bytes(b"no database\n" * 500)
    else:
        database.unlink()
    with caplog.at_level(logging.WARNING, logger="rbee"):
        after = {row.ref: row for row in Catalog(database, models_dir).list()}
    assert after.keys() == before.keys()
    for ref, row in after.items():
        was = before[ref]
        assert (row.local_path, row.size_bytes, row.digest) == (was.local_path, was.size_bytes, was.digest)
        assert (row.revision, row.downloaded_at_unix) == (was.revision, was.downloaded_at_unix)
    assert "rebuilt from disk models=3" in caplog.text


def test_damage_that_shows_in_use_is_repaired_for_the_next_request(database: Path, models_dir: Path) -> None:
    catalog = Catalog(database, models_dir)
    path = _fetch(str(REPO), models_dir, catalog)
    database.write_bytes(b"no database\n" * 500)
    with pytest.raises(ServiceUnavailable):
        catalog.list()
    row = catalog.find(REPO)
    assert row is not None
    assert row.local_path == path
    assert database.with_name("models.db.corrupt.backup").exists()


def test_models_without_a_note_get_the_reference_of_their_path(models_dir: Path) -> None:
    wheel = _write(models_dir / "pypi" / "pkg==1.0" / "model.gguf")
    top = _write(models_dir / "hf" / "org" / "repo" / "a.Q4_0.gguf")
    _write(models_dir / "hf" / "org" / "repo" / "0123456789ab" / "b.gguf")
    _write(models_dir / "hf" / "org" / "repo" / "c.gguf.partial")
    _write(models_dir / "hf" / "org" / "repo" / "d-00001-of-00002.gguf")
    _write(models_dir / "ct2" / "x" / "e.gguf")
    found = {str(model.ref): model for model in models_on_disk(models_dir)}
    assert {text: model.path for text, model in found.items()} == {
        "pypi:pkg==1.0/model.gguf": wheel,
        "hf:org/repo/a.Q4_0.gguf": top,
    }
    assert {model.note.digest for model in found.values()} == {None}


def test_a_file_that_is_not_the_noted_one_loses_what_was_noted(models_dir: Path) -> None:
    path = _write(models_dir / "hf" / "org" / "repo" / "a.gguf")
    write_note(path, FileNote((str(REPO),), 100, "ab" * 32, revision="r1"))
    path.write_bytes(CONTENT + b"more")
    (found,) = models_on_disk(models_dir)
    assert str(found.ref) == "hf:org/repo/a.gguf"
    assert (found.note.digest, found.note.revision, found.note.size_bytes) == (None, None, 104)


def test_a_split_model_is_found_once_with_all_its_parts(models_dir: Path) -> None:
    folder = models_dir / "hf" / "org" / "repo"
    parts = [_write(folder / f"m-0000{number}-of-00002.gguf") for number in (1, 2)]
    write_note(parts[0], FileNote((str(REPO),), 200, "ab" * 32, ("1" * 64, "2" * 64)))
    (found,) = models_on_disk(models_dir)
    assert (found.ref, found.path, found.note.size_bytes) == (REPO, parts[0], 200)
    assert found.note.part_digests == ("1" * 64, "2" * 64)


def test_of_two_files_that_a_reference_meant_the_later_counts(database: Path, models_dir: Path) -> None:
    folder = models_dir / "hf" / "org" / "repo"
    for name, at in (("old.gguf", 2), ("new.gguf", 3), ("older.gguf", 1)):
        write_note(_write(folder / name), FileNote((str(REPO),), 100, None, fetched_at_unix=at))
    (row,) = Catalog(database, models_dir).list()
    assert row.local_path == folder / "new.gguf"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"references": 1}', '{"references": [], "size_bytes": "x"}']
)
def test_a_note_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    _write(tmp_path / "a.gguf.rbee.json", text.encode())
    assert read_note(tmp_path / "a.gguf") is None


def test_references_of_a_note_that_are_none_are_left_out(models_dir: Path) -> None:
    path = _write(models_dir / "hf" / "org" / "repo" / "a.gguf")
    write_note(path, FileNote(("nonsense", "hf:../../etc", str(REPO)), 100, None))
    assert [model.ref for model in models_on_disk(models_dir)] == [REPO]


def test_a_link_out_of_the_models_directory_is_no_model_of_it(models_dir: Path, tmp_path: Path) -> None:
    outside = _write(tmp_path / "outside.gguf")
    link = models_dir / "hf" / "org" / "repo" / "a.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    assert list(models_on_disk(models_dir)) == []


def test_a_part_that_was_deleted_drops_the_row_of_the_whole_model(database: Path, tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"m-0000{number}-of-00002.gguf") for number in (1, 2)]
    catalog = Catalog(database)
    catalog.add(REPO, parts[0], 200)
    assert catalog.find(REPO) is not None
    parts[1].unlink()
    assert catalog.find(REPO) is None
    assert catalog.list() == ()
