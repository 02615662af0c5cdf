"""A SQLite file shared by several processes: transactions that wait their turn, and damage set aside."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, MetaData, create_engine, event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from rbee.core.errors import ServiceUnavailable

logger = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 15.0
_WRITES = "rbee_writes"


class Database:
    """The file at ``path`` with the tables of ``metadata``.

    Every transaction opens a connection of its own, so one instance may be used by threads, greenlets and
    after a fork. ``version`` is kept in ``PRAGMA user_version``, for a later migration to start from. A file
    that SQLite cannot read is moved aside and replaced by an empty database.

    Raises (constructor and both transactions): ServiceUnavailable when the file cannot be read or written.
    """

    def __init__(self, path: Path, metadata: MetaData, version: int) -> None:
        self._path = path
        self._metadata = metadata
        self._version = version
        self._engine = _engine(path)
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S):
                self._open_or_set_aside()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its start; committed unless an exception leaves it."""
        with self._translated(), self._engine.connect().execution_options(**{_WRITES: True}) as connection:
            yield connection
            connection.commit()

    def _open_or_set_aside(self) -> None:
        try:
            self._prepare()
        except DatabaseError as error:
            if not _is_damage(error):
                raise
            backup = set_aside(self._path)
            logger.warning("database damaged, set aside database=%s backup=%s", self._path, backup)
            self._prepare()

    def _prepare(self) -> None:
        with self._engine.connect() as connection:
            verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if verdict != "ok":
            raise DatabaseError("PRAGMA quick_check", None, _damage(str(verdict)))
        with self._engine.connect().execution_options(**{_WRITES: True}) as connection:
            if connection.exec_driver_sql("PRAGMA user_version").scalar() == 0:
                self._metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {self._version}")
            connection.commit()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, Timeout, OSError) as error:
            reason = getattr(error, "orig", None) or error
            logger.error("database unavailable database=%s reason=%s", self._path, reason)
            raise ServiceUnavailable(f"The database {self._path.name} cannot be read or written") from error


def set_aside(database: Path) -> Path:
    """Move a damaged SQLite file and its write-ahead log to ``<name>.corrupt.backup``; returns that path."""
    backup = database.with_name(f"{database.name}.corrupt.backup")
    os.replace(database, backup)
    for suffix in ("-wal", "-shm"):
        companion = database.with_name(database.name + suffix)
        if companion.exists():
            os.replace(companion, backup.with_name(backup.name + suffix))
    return backup


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )

    # The driver's own transactions begin deferred and fail at once with "database is locked" when two
    # processes read and then write; an immediate one waits its turn.
    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _damage(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_damage(error: DatabaseError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
