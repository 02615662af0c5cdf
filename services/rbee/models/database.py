"""A SQLite file shared by several processes: transactions that wait their turn, and damage set aside."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Column, Connection, MetaData, String, Table, create_engine, event, inspect, select
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from rbee.core.errors import ServiceUnavailable

logger = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 15.0
_WRITES = "rbee_writes"


@dataclass(frozen=True)
class Migrations:
    """The history of a schema: a folder of alembic, and the newest step in it."""

    folder: Path
    head: str


class Database:
    """The file at ``path`` with the tables of ``metadata``.

    Every transaction opens a connection of its own, so one instance may be used by threads, greenlets and
    after a fork. A file of an older schema is brought up by ``migrations``. One that SQLite cannot read is
    moved aside and replaced, also when the damage shows later.

    Args:
        fill: called in the transaction that makes the tables of a new file.

    Raises (constructor and both transactions): ServiceUnavailable when the file cannot be read or written,
    or is of a newer schema.
    """

    def __init__(
        self,
        path: Path,
        metadata: MetaData,
        migrations: Migrations,
        fill: Callable[[Connection], None] = lambda _connection: None,
    ) -> None:
        self._path = path
        self._metadata = metadata
        self._migrations = migrations
        self._fill = fill
        self._engine = _engine(path)
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
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
        with FileLock(f"{self._path}.lock", timeout=BUSY_TIMEOUT_S):
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
            tables = set(inspect(connection).get_table_names())
            if not tables & set(self._metadata.tables):
                # Made as it is now rather than step by step: loading alembic takes longer than all the rest.
                self._metadata.create_all(connection)
                _stamp(connection, self._migrations.head)
                self._fill(connection)
            elif _VERSIONS.name not in tables or _version(connection) != self._migrations.head:
                _migrate(connection, self._migrations, self._path)
            connection.commit()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, Timeout, OSError) as error:
            reason = getattr(error, "orig", None) or error
            logger.error("database unavailable database=%s reason=%s", self._path, reason)
            self._recover(error)
            raise ServiceUnavailable(f"The database {self._path.name} cannot be read or written") from error

    def _recover(self, error: Exception) -> None:
        """Replace a file whose damage shows in use, so that the next transaction finds a sound one."""
        if not isinstance(error, DatabaseError) or not _is_damage(error):
            return
        try:
            self._open_or_set_aside()
        except (SQLAlchemyError, sqlite3.Error, Timeout, OSError) as again:
            logger.error("database not replaced database=%s reason=%s", self._path, again)


# Alembic's own table, as it makes it itself.
_VERSIONS = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def _stamp(connection: Connection, version: str) -> None:
    """Note the schema's version as alembic does."""
    _VERSIONS.create(connection)
    connection.execute(_VERSIONS.insert().values(version_num=version))


def _version(connection: Connection) -> str | None:
    return connection.execute(select(_VERSIONS.c.version_num)).scalar()


def _migrate(connection: Connection, migrations: Migrations, path: Path) -> None:
    import alembic.command
    import alembic.config
    import alembic.util

    config = alembic.config.Config()
    config.set_main_option("script_location", str(migrations.folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, migrations.head)
    except alembic.util.CommandError as error:
        raise ServiceUnavailable(
            f"The database {path.name} was written by a newer version of rbee",
            suggestion="Upgrade rbee on this machine",
        ) from error
    logger.info("database migrated database=%s version=%s", path, migrations.head)


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
