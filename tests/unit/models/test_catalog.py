"""The catalog: its table, lookups that tell the truth, and survival of damage and of company."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.core.errors import ServiceUnavailable
from rbee.core.references import ModelRef, parse_model_ref
from rbee.models.catalog import MIGRATIONS, Catalog, catalog_record
from rbee.models.gguf_file import GgufSummary
from support.daemons import environment

REPO = parse_model_ref("hf:org/repo")
QUANT = parse_model_ref("hf:org/repo:Q4_0")
DIGEST = "ab" * 32


class Clock:
    """Time that moves only when told to."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "tinyllama-q4.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF" + bytes(96))
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "state" / "models.db", clock=Clock(1_900_000_000.9))


def test_a_row_has_the_columns_of_the_contract(catalog: Catalog, model: Path, tmp_path: Path) -> None:
    catalog.add(QUANT, model, 100, DIGEST)
    with sqlite3.connect(tmp_path / "state" / "models.db") as raw:
        raw.row_factory = sqlite3.Row
        row = dict(raw.execute("SELECT * FROM models").fetchone())
    assert row == {
        "id": "tinyllama-q4",
        "provider": "hf",
        "reference": "org/repo",
        "variant": "Q4_0",
        "local_path": str(model),
        "size_bytes": 100,
        "digest": DIGEST,
        "revision": None,
        "part_digests": None,
        "downloaded_at_unix": 1_900_000_000,
        "last_used_unix": None,
    }


def test_a_taken_id_gets_the_next_suffix(catalog: Catalog, model: Path) -> None:
    ids = [
        catalog.add(parse_model_ref(text), model, 100).id
        for text in ("hf:org/repo", "hf:org/repo:Q4_0", "hf:org/repo/tinyllama-q4.gguf")
    ]
    assert ids == ["tinyllama-q4", "tinyllama-q4-2", "tinyllama-q4-3"]


def test_the_id_of_a_folder_is_its_whole_name(catalog: Catalog, tmp_path: Path) -> None:
    folder = tmp_path / "llama-3.1"
    folder.mkdir()
    assert catalog.add(ModelRef(REPO.provider.FILE, str(folder)), folder, 0).id == "llama-3.1"


def test_adding_a_reference_again_renews_its_row_and_keeps_id_and_last_use(
    catalog: Catalog, model: Path
) -> None:
    first = catalog.add(REPO, model, 100)
    catalog.touch(REPO)
    again = catalog.add(REPO, model, 100, DIGEST)
    assert (again.id, again.digest, again.last_used_unix) == (first.id, DIGEST, 1_900_000_000)
    assert len(catalog.list()) == 1


def test_size_and_digest_belong_to_the_file_and_not_to_one_reference(catalog: Catalog, model: Path) -> None:
    catalog.add(REPO, model, 1, "00" * 32)
    catalog.add(QUANT, model, 100, DIGEST)
    row = catalog.find(REPO)
    assert row is not None
    assert (row.size_bytes, row.digest) == (100, DIGEST)


def test_the_variant_is_part_of_the_key(catalog: Catalog, model: Path) -> None:
    catalog.add(REPO, model, 100)
    assert catalog.find(QUANT) is None
    assert catalog.find(parse_model_ref("hf:org/repo:q4_0")) is None


def test_a_row_whose_file_is_gone_is_dropped(catalog: Catalog, model: Path) -> None:
    catalog.add(REPO, model, 100)
    catalog.add(QUANT, model, 100)
    model.unlink()
    assert catalog.find(REPO) is None
    assert catalog.list() == ()
    model.write_bytes(b"GGUF")
    assert catalog.find(REPO) is None


def test_a_digest_noted_later_and_the_last_use_are_kept(catalog: Catalog, model: Path) -> None:
    catalog.add(REPO, model, 100)
    catalog.set_digests(REPO, DIGEST)
    catalog.touch(REPO)
    row = catalog.find(REPO)
    assert row is not None
    assert (row.digest, row.last_used_unix) == (DIGEST, 1_900_000_000)


def test_a_registered_file_that_changed_in_place_loses_its_digest(tmp_path: Path, model: Path) -> None:
    clock = Clock(model.stat().st_mtime + 10)
    catalog = Catalog(tmp_path / "models.db", clock=clock)
    ref = parse_model_ref(f"file:{model}")
    catalog.add(ref, model, 100, DIGEST)
    unchanged = catalog.find(ref)
    assert unchanged is not None
    assert unchanged.digest == DIGEST

    model.write_bytes(b"GGUF" + bytes(96))
    os.utime(model, (clock.now + 5, clock.now + 5))
    clock.now += 10
    changed = catalog.find(ref)
    assert changed is not None
    assert changed.digest is None

    catalog.set_digests(ref, DIGEST)
    model.write_bytes(b"GGUF")
    os.utime(model, (clock.now - 5, clock.now - 5))
    shrunk = catalog.find(ref)
    assert shrunk is not None
    assert (shrunk.digest, shrunk.size_bytes) == (None, 4)


def test_remove_returns_the_row_and_leaves_the_file(catalog: Catalog, model: Path) -> None:
    catalog.add(REPO, model, 100)
    removed = catalog.remove(REPO)
    assert removed is not None
    assert removed.ref == REPO
    assert model.exists()
    assert catalog.remove(REPO) is None


@pytest.mark.parametrize("damage", ["text", "page"])
def test_a_damaged_database_is_set_aside_and_a_warning_logged(
    damage: str, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "models.db"
    Catalog(path).add(REPO, model, 100)
    content = path.read_bytes()
    broken = b"no database\n" * 500 if damage == "text" else content[:4096] + b"\xff" * (len(content) - 4096)
    path.write_bytes(broken)
    with caplog.at_level(logging.WARNING, logger="rbee"):
        fresh = Catalog(path)
    assert fresh.list() == ()
    assert fresh.add(REPO, model, 100).id == "tinyllama-q4"
    assert (tmp_path / "models.db.corrupt.backup").read_bytes() == broken
    assert "set aside" in caplog.text


def test_a_catalog_that_cannot_be_opened_is_a_named_error_and_is_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    path.mkdir()
    with pytest.raises(ServiceUnavailable, match=r"models\.db"):
        Catalog(path)
    assert path.is_dir()


def test_the_schema_version_is_stored_for_later_migrations(catalog: Catalog, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state" / "models.db") as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(MIGRATIONS.head,)]
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_processes_add_rows_at_once_without_losing_any(tmp_path: Path, model: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rbee.models.catalog import Catalog\n"
        "from rbee.core.references import parse_model_ref\n"
        "catalog = Catalog(Path(sys.argv[1]))\n"
        "for n in range(15):\n"
        "    catalog.add(parse_model_ref(f'hf:org/repo{sys.argv[3]}:Q{n}'), Path(sys.argv[2]), 1)\n"
    )
    database = tmp_path / "models.db"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(database), str(model), str(n)], env=environment(tmp_path)
        )
        for n in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    rows = Catalog(database).list()
    assert len(rows) == 45
    assert len({row.id for row in rows}) == 45


def test_the_api_record_adds_what_the_header_says_and_null_without_one(catalog: Catalog, model: Path) -> None:
    row = catalog.add(QUANT, model, 100, DIGEST)
    summary = GgufSummary("llama", "Q4_0", 32000, 2, 2048, 22)
    record = catalog_record(row, summary)
    assert record == {
        "id": "tinyllama-q4",
        "model_ref": "hf:org/repo:Q4_0",
        "provider": "hf",
        "reference": "org/repo",
        "variant": "Q4_0",
        "local_path": str(model),
        "size_bytes": 100,
        "digest": DIGEST,
        "revision": None,
        "downloaded_at_unix": 1_900_000_000,
        "last_used_unix": None,
        "format": "gguf",
        "architecture": "llama",
        "quantization": "Q4_0",
        "vocab_size": 32000,
        "eos_token_id": 2,
        "context_length": 2048,
        "block_count": 22,
    }
    bare = catalog_record(row, None)
    assert bare.keys() == record.keys()
    assert [key for key, value in bare.items() if value is None] == [
        "revision",
        "last_used_unix",
        "architecture",
        "quantization",
        "vocab_size",
        "eos_token_id",
        "context_length",
        "block_count",
    ]
