"""The journal's file: it survives a crash, and damage to it stops no hive."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from rbee.core.errors import ServiceUnavailable
from rbee.hive.adapters.pid_journal import SqlitePidJournal
from rbee.hive.ports import JournalRow

ROW = JournalRow("worker-a", 9200, 100, 1700000000.25, 8001, 1700000000)


def test_a_row_is_in_the_file_as_soon_as_it_was_added(tmp_path: Path) -> None:
    path = tmp_path / "state" / "workers.db"
    journal = SqlitePidJournal(path)
    journal.add(ROW)
    other = SqlitePidJournal(path)
    assert other.rows() == [ROW]
    other.close()
    journal.close()


def test_the_table_has_the_columns_of_the_contract(tmp_path: Path) -> None:
    SqlitePidJournal(tmp_path / "workers.db").close()
    with sqlite3.connect(tmp_path / "workers.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(worker_pids)")]
    database.close()
    assert columns == ["worker_id", "hive_port", "pid", "pid_started", "port", "started_at_unix"]


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_moved_aside_and_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "workers.db"
    path.write_bytes(content)
    told: list[Path] = []
    journal = SqlitePidJournal(path, told.append)
    journal.add(ROW)
    assert journal.rows() == [ROW]
    journal.close()
    assert told == [tmp_path / "workers.db.corrupt.backup"]
    assert told[0].read_bytes() == content


def test_a_locked_file_is_an_error_and_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.hive.adapters.pid_journal.LOCK_WAIT_S", 0.05)
    path = tmp_path / "workers.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ServiceUnavailable):
        SqlitePidJournal(path)
    holder.close()
    assert path.exists()
    assert not (tmp_path / "workers.db.corrupt.backup").exists()
