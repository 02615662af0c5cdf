"""The node registry as an SQLite file: nodes, cordons and the roll-out under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError

from rbee.core.errors import NodeExists, ServiceUnavailable
from rbee.core.logs import get_logger
from rbee.queen.cordons import Cordon, Rollout
from rbee.queen.registry import Node, NodeStatus

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


class SqliteNodes:
    """The store behind ``Nodes``; a file that is no database is moved aside and told in the log."""

    def __init__(self, file: Path) -> None:
        self._file = file
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
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable() from error

    def get(self, name: str) -> Node | None:
        with self._begin() as connection:
            row = connection.execute(sa.select(BEEHIVES).where(BEEHIVES.c.node_name == name)).first()
            return None if row is None else _node(row)

    def all(self) -> list[Node]:
        with self._begin() as connection:
            in_order = sa.select(BEEHIVES).order_by(sa.text("rowid"))
            return [_node(row) for row in connection.execute(in_order)]

    def add(self, node: Node) -> None:
        try:
            with self._begin() as connection:
                connection.execute(BEEHIVES.insert().values(**_row(node)))
        except IntegrityError:
            raise NodeExists(node.node_name) from None

    def replace(self, node: Node) -> bool:
        values = _row(node)
        with self._begin() as connection:
            mine = BEEHIVES.c.node_name == node.node_name
            return bool(connection.execute(BEEHIVES.update().where(mine).values(**values)).rowcount)

    def remove(self, name: str) -> bool:
        with self._begin() as connection:
            gone = connection.execute(BEEHIVES.delete().where(BEEHIVES.c.node_name == name))
            return bool(gone.rowcount)

    def note_contact(self, name: str, status: str, connected_unix: int | None, error: str | None) -> None:
        values = {"status": str(status), "last_connected_unix": connected_unix, "last_error": error}
        with self._begin() as connection:
            connection.execute(BEEHIVES.update().where(BEEHIVES.c.node_name == name).values(**values))

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
    engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": _BUSY_TIMEOUT_S})
    try:
        with engine.begin() as connection:
            verdict = connection.exec_driver_sql("PRAGMA quick_check").scalar()
            if verdict != "ok":
                raise DatabaseError("PRAGMA quick_check", None, Exception(str(verdict)))
        if _revision(engine) != HEAD:
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
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
