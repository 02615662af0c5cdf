"""The node registry as an SQLite file: nodes, cordons and the roll-out under way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from rbee.core.errors import NodeExists, ServiceUnavailable
from rbee.core.logs import get_logger
from rbee.queen.cordons import Cordon, Rollout
from rbee.queen.registry import Contact, Node, NodeStatus

_BUSY_TIMEOUT_S = 5.0
HEAD = "0002"
"""The newest step under ``migrations/versions``."""
MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"
_TABLES = sa.MetaData()
BEEHIVES = sa.Table(
    "beehives",
    _TABLES,
    sa.Column("node_name", sa.Text, primary_key=True),
    sa.Column("ssh_host", sa.Text, nullable=False),
    sa.Column("ssh_port", sa.Integer, nullable=False, server_default="22"),
    sa.Column("ssh_user", sa.Text, nullable=False),
    sa.Column("ssh_key_path", sa.Text),
    sa.Column("git_repo_url", sa.Text),
    sa.Column("git_branch", sa.Text, nullable=False, server_default="main"),
    sa.Column("install_path", sa.Text, nullable=False),
    sa.Column("hive_port", sa.Integer, nullable=False, server_default="9200"),
    sa.Column("last_connected_unix", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Column("status", sa.Text, nullable=False, server_default="unknown"),
    sa.Column("backends", sa.JSON(none_as_null=True)),
    sa.Column("devices", sa.JSON(none_as_null=True)),
)
_CORDONS = sa.Table(
    "cordons",
    _TABLES,
    sa.Column("node_name", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since_unix", sa.Integer, nullable=False),
)
_ROLLOUTS = sa.Table(
    "rollouts",
    _TABLES,
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("operator", sa.Text, nullable=False),
    sa.Column("since_unix", sa.Integer, nullable=False),
)


# Alembic's own table, as it makes it itself.
_VERSIONS = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
)


class SqliteNodes:
    """The store behind ``Nodes``; a file that is no database is moved aside and told in the log.

    Nodes that were read are kept until they change here, or another program writes to the file: a task asks
    for all of them, and a thousand rows take longer to read than it takes to place it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read: dict[str, Node] = {}
        self._read_at: int | None = None
        """Which state of the file ``_read`` is, as SQLite counts what others write; None: unknown."""
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._engine = _open(file)
            except DatabaseError:
                aside = file.with_name(f"{file.name}.corrupt.backup")
                file.replace(aside)
                get_logger("queen-rbee").warning(
                    "database_corrupt", message="node registry moved aside", path=str(aside)
                )
                self._engine = _open(file)
            # The only connection; a change that came over another one is another program's.
            self._driver: Any = self._engine.raw_connection().driver_connection
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable() from error

    def get(self, name: str) -> Node | None:
        return self._nodes().get(name)

    def all(self) -> list[Node]:
        return list(self._nodes().values())

    def add(self, node: Node) -> None:
        try:
            with self._changing() as connection:
                connection.execute(BEEHIVES.insert().values(**_row(node)))
        except IntegrityError:
            raise NodeExists(node.node_name) from None

    def replace(self, node: Node) -> bool:
        values = _row(node)
        with self._changing() as connection:
            mine = BEEHIVES.c.node_name == node.node_name
            return bool(connection.execute(BEEHIVES.update().where(mine).values(**values)).rowcount)

    def remove(self, name: str) -> bool:
        with self._changing() as connection:
            gone = connection.execute(BEEHIVES.delete().where(BEEHIVES.c.node_name == name))
            return bool(gone.rowcount)

    def note_contacts(self, contacts: Sequence[Contact]) -> None:
        contact = BEEHIVES.update().where(BEEHIVES.c.node_name == sa.bindparam("node"))
        with self._begin() as connection:
            if contacts:
                connection.execute(contact, [{"node": c.node_name, **c.values()} for c in contacts])
        for one in contacts:
            known = self._read.get(one.node_name)
            if known is not None:
                self._read[one.node_name] = replace(known, **one.values())

    def cordons(self) -> list[Cordon]:
        with self._begin() as connection:
            return [Cordon(**row._mapping) for row in connection.execute(sa.select(_CORDONS))]

    def set_cordon(self, cordon: Cordon) -> None:
        with self._begin() as connection:
            connection.execute(_CORDONS.insert().prefix_with("OR REPLACE").values(**asdict(cordon)))

    def lift_cordon(self, node_name: str) -> None:
        with self._begin() as connection:
            connection.execute(_CORDONS.delete().where(_CORDONS.c.node_name == node_name))

    def rollout(self) -> Rollout | None:
        with self._begin() as connection:
            row = connection.execute(sa.select(_ROLLOUTS)).first()
            return None if row is None else Rollout(**row._mapping)

    def set_rollout(self, rollout: Rollout | None) -> None:
        with self._begin() as connection:
            connection.execute(_ROLLOUTS.delete())
            if rollout is not None:
                connection.execute(_ROLLOUTS.insert().values(**asdict(rollout)))

    def close(self) -> None:
        self._engine.dispose()

    def _nodes(self) -> dict[str, Node]:
        """All nodes by name, in order of insertion."""
        try:
            state = self._driver.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise _unavailable() from error
        if self._read_at != state:
            with self._begin() as connection:
                rows = connection.execute(sa.select(BEEHIVES).order_by(sa.text("rowid")))
                self._read = {row.node_name: _node(row) for row in rows}
            self._read_at = state
        return self._read

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        self._read_at = None
        with self._begin() as connection:
            yield connection

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise _unavailable() from error


def _open(file: Path) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{file}", connect_args={"timeout": _BUSY_TIMEOUT_S}, poolclass=StaticPool
    )
    try:
        with engine.begin() as connection:
            verdict = connection.exec_driver_sql("PRAGMA quick_check").scalar()
            if verdict != "ok":
                raise DatabaseError("PRAGMA quick_check", None, Exception(str(verdict)))
        if not sa.inspect(engine).get_table_names():
            _make(engine)
        if _revision(engine) != HEAD:
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _make(engine: sa.Engine) -> None:
    """The tables of a new file, as they are now rather than step by step: loading alembic takes 0.2 s."""
    with engine.begin() as connection:
        # Of several queens that open a new file, one makes them, all at once.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        if sa.inspect(connection).get_table_names():
            return
        _TABLES.create_all(connection)
        _VERSIONS.create(connection)
        connection.execute(_VERSIONS.insert().values(version_num=HEAD))


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(sa.select(_VERSIONS.c.version_num)).scalar()
        return None if found is None else str(found)


def _migrate(engine: sa.Engine) -> None:
    """Apply what is missing. Alembic is loaded only here: it costs more than all the rest of opening."""
    import alembic.command
    import alembic.config
    import alembic.util

    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, HEAD)
    except alembic.util.CommandError as error:
        raise ServiceUnavailable(
            "The node registry was written by a newer version of rbee",
            suggestion="Upgrade rbee on this machine",
        ) from error


def _row(node: Node) -> dict[str, Any]:
    row = node.record()
    del row["builtin"]
    row["status"] = str(node.status)
    return row


def _node(row: sa.Row[Any]) -> Node:
    values = dict(row._mapping)
    values["status"] = NodeStatus(values["status"])
    return Node(**values)


def _unavailable() -> ServiceUnavailable:
    return ServiceUnavailable("The node registry cannot be used", suggestion="See the queen's log")
