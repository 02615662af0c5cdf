"""Nodes and their store: the built-in one, contacts, migrations."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from rbee.core.errors import NodeExists, NodeNotFound, NodeProtected, ServiceUnavailable
from rbee.queen.adapters.registered import has_nodes
from rbee.queen.adapters.sqlite_nodes import HEAD, MIGRATIONS, SqliteNodes
from rbee.queen.ports import NodeStore
from rbee.queen.registry import Node, Nodes, NodeStatus, builtin_node
from rbee.testing.fake_nodes import FakeNodes

ALPHA = Node("alpha", "alpha.home.arpa", "bee", "/home/bee/rbee")


def no_store() -> NodeStore:
    raise AssertionError("the store was opened")


def test_localhost_needs_no_store() -> None:
    nodes = Nodes(no_store, builtin_node(9200), any_registered=lambda: False)
    assert nodes.find("localhost").builtin is True
    assert [n.node_name for n in nodes.all()] == ["localhost"]
    nodes.note_reachable(nodes.find("localhost"))
    assert nodes.find("localhost").status is NodeStatus.REACHABLE


def test_localhost_is_first_protected_and_its_name_taken() -> None:
    store = FakeNodes()
    nodes = Nodes(lambda: store, builtin_node(9200))
    nodes.add(ALPHA)
    assert [n.node_name for n in nodes.all()] == ["localhost", "alpha"]
    with pytest.raises(NodeProtected):
        nodes.remove("localhost")
    with pytest.raises(NodeExists):
        nodes.refuse_taken("localhost")
    with pytest.raises(NodeNotFound) as caught:
        nodes.find("beta")
    assert "add-node --name beta --ssh-host beta.home.arpa" in (caught.value.suggestion or "")


def test_repeated_good_contacts_write_the_store_once_in_a_while() -> None:
    store, clock = FakeNodes(), [1000.0]
    nodes = Nodes(lambda: store, builtin_node(9200), now=lambda: clock[0])
    nodes.add(ALPHA)
    for second in range(10):
        clock[0] = 1000.0 + second
        nodes.note_reachable(nodes.find("alpha"))
    assert store.contacts == 2
    assert nodes.find("alpha").last_connected_unix == 1005


def test_a_contact_with_a_hive_that_was_just_started_is_always_written() -> None:
    store, clock = FakeNodes(), [1000.0]
    nodes = Nodes(lambda: store, builtin_node(9200), now=lambda: clock[0])
    nodes.add(ALPHA)
    nodes.note_reachable(nodes.find("alpha"))
    clock[0] = 1001.0
    nodes.note_reachable(nodes.find("alpha"), hive_is_new=True)
    assert nodes.find("alpha").last_connected_unix == 1001


def test_a_failed_contact_keeps_the_time_of_the_last_good_one() -> None:
    store = FakeNodes()
    nodes = Nodes(lambda: store, builtin_node(9200), now=lambda: 1000.0)
    nodes.add(ALPHA)
    nodes.note_reachable(nodes.find("alpha"))
    nodes.note_unreachable(nodes.find("alpha"), "Connection timeout")
    alpha = nodes.find("alpha")
    assert (alpha.status, alpha.last_connected_unix) == (NodeStatus.UNREACHABLE, 1000)
    assert alpha.last_error == "Connection timeout"
    nodes.note_reachable(alpha)
    assert nodes.find("alpha").last_error is None


def test_the_newest_step_is_the_one_the_adapter_expects() -> None:
    steps = sorted(file.name for file in (MIGRATIONS / "versions").glob("v*.py"))
    assert steps[-1].startswith(f"v{HEAD}_")


def schema(file: Path) -> tuple[object, ...]:
    """Columns of every table, with type, not null, default and primary key; and the step it is at."""
    with closing(sqlite3.connect(file)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        tables = {name: database.execute(f"PRAGMA table_info({name})").fetchall() for (name,) in names}
        return tables, database.execute("SELECT version_num FROM alembic_version").fetchall()


def test_a_new_database_is_what_all_steps_together_make(tmp_path: Path) -> None:
    stepwise, new = tmp_path / "stepwise.db", tmp_path / "new.db"
    with closing(sqlite3.connect(stepwise)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    for file in (stepwise, new):
        SqliteNodes(file).close()
    assert schema(new) == schema(stepwise)


def test_a_new_database_does_without_alembic(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from rbee.queen.adapters.sqlite_nodes import SqliteNodes;"
        "SqliteNodes(Path(sys.argv[1])).close(); sys.exit('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "beehives.db"], check=False)
    assert done.returncode == 0


def test_several_queens_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    for number in range(10):
        file = tmp_path / f"{number}" / "beehives.db"
        start, failed = threading.Barrier(6), list[Exception]()

        def open_it(file: Path = file, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                SqliteNodes(file).close()
            except Exception as error:
                failed.append(error)  # noqa: B023 (read below, in the same round)

        threads = [threading.Thread(target=open_it) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert [path.name for path in file.parent.iterdir()] == ["beehives.db"]


def test_a_database_is_opened_again_without_migrating(tmp_path: Path) -> None:
    file = tmp_path / "beehives.db"
    for _ in range(2):
        store = SqliteNodes(file)
        store.close()
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


def test_a_database_from_before_the_first_recorded_step_keeps_its_nodes(tmp_path: Path) -> None:
    file = tmp_path / "beehives.db"
    store = SqliteNodes(file)
    store.add(ALPHA)
    store.close()
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript("DROP TABLE alembic_version; DROP TABLE cordons; DROP TABLE rollouts")
    again = SqliteNodes(file)
    assert again.get("alpha") == ALPHA
    again.close()


def test_a_database_of_the_first_step_gets_what_came_later(tmp_path: Path) -> None:
    file = tmp_path / "beehives.db"
    store = SqliteNodes(file)
    store.add(ALPHA)
    store.close()
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(
            "DROP TABLE cordons; DROP TABLE rollouts; UPDATE alembic_version SET version_num = '0001'"
        )
    assert has_nodes(file) is True
    again = SqliteNodes(file)
    assert again.all() == [ALPHA]
    assert again.cordons() == []
    again.close()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "beehives.db"
    SqliteNodes(file).close()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ServiceUnavailable, match="newer version"):
        SqliteNodes(file)
    assert file.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["beehives.db"]


@pytest.mark.parametrize("content", [b"no database at all" * 50, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "beehives.db"
    file.write_bytes(content)
    store = SqliteNodes(file)
    assert store.all() == []
    store.close()
    assert (tmp_path / "beehives.db.corrupt.backup").read_bytes() == content


def test_whether_nodes_are_registered_is_known_without_the_adapter(tmp_path: Path) -> None:
    file = tmp_path / "beehives.db"
    assert has_nodes(file) is False
    store = SqliteNodes(file)
    assert has_nodes(file) is False
    store.add(ALPHA)
    assert has_nodes(file) is True
    store.close()
    (tmp_path / "damaged.db").write_bytes(b"?" * 100)
    assert has_nodes(tmp_path / "damaged.db") is True
