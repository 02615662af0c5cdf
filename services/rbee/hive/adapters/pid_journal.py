"""The PID journal ``workers.db``: one small table, by the standard library's sqlite3.

SQLAlchemy would cost a hive about 0.3 s of start-up for six columns that are only added and removed. The
file has to survive a crash of this process, not of the machine (a restart ends all workers and makes the pids
meaningless), so nothing is synced to disk and a write takes microseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from rbee.core.errors import ServiceUnavailable
from rbee.hive.ports import JournalRow

LOCK_WAIT_S = 2.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS worker_pids (
    worker_id TEXT PRIMARY KEY,
    hive_port INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    pid_started REAL NOT NULL,
    port INTEGER NOT NULL,
    started_at_unix INTEGER NOT NULL
)
"""
_COLUMNS = "worker_id, hive_port, pid, pid_started, port, started_at_unix"


class SqlitePidJournal:
    """Implements PidJournal.

    Args:
        path: the database; one that SQLite cannot open is moved aside to ``<name>.corrupt.backup``.
        on_corrupt: told the path of a database that was moved aside.

    Raises:
        ServiceUnavailable: the database is locked or cannot be opened or written; raised by every method too.
    """

    def __init__(self, path: Path, on_corrupt: Callable[[Path], None] = lambda _path: None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(path)
        except sqlite3.OperationalError as error:
            # Locked, or not ours to open: that is no damage, and moving it aside would lose it.
            raise ServiceUnavailable(f"The PID journal {path} cannot be opened: {error}") from None
        except sqlite3.DatabaseError:
            backup = path.with_name(path.name + ".corrupt.backup")
            path.replace(backup)
            for suffix in ("-journal", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            on_corrupt(backup)
            self._database = _open(path)

    def add(self, row: JournalRow) -> None:
        self._write(
            f"INSERT OR REPLACE INTO worker_pids ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
            (row.worker_id, row.hive_port, row.pid, row.pid_started, row.port, row.started_at_unix),
        )

    def remove(self, worker_id: str) -> None:
        self._write("DELETE FROM worker_pids WHERE worker_id = ?", (worker_id,))

    def rows(self, hive_port: int | None = None) -> list[JournalRow]:
        try:
            found = self._database.execute(f"SELECT {_COLUMNS} FROM worker_pids ORDER BY started_at_unix")  # noqa: S608
            every = [JournalRow(*row) for row in found]
            return [row for row in every if hive_port is None or row.hive_port == hive_port]
        except sqlite3.Error as error:
            raise ServiceUnavailable(f"The PID journal {self._path} cannot be read: {error}") from None

    def clear(self, hive_port: int) -> None:
        self._write("DELETE FROM worker_pids WHERE hive_port = ?", (hive_port,))

    def close(self) -> None:
        self._database.close()

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            with self._database:
                self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise ServiceUnavailable(f"The PID journal {self._path} cannot be written: {error}") from None


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=LOCK_WAIT_S, check_same_thread=False)
    try:
        database.execute("PRAGMA synchronous = OFF")
        database.execute(_SCHEMA)
        database.execute(f"SELECT {_COLUMNS} FROM worker_pids LIMIT 1").fetchall()  # noqa: S608
        database.commit()
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database
