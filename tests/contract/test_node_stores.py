"""What every node store does: the one in SQLite, and the one in memory that unit tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.core.errors import NodeExists
from rbee.queen.adapters.sqlite_nodes import SqliteNodes
from rbee.queen.cordons import Cordon, Rollout
from rbee.queen.ports import NodeStore
from rbee.queen.registry import Contact, Node, NodeStatus
from rbee.testing.fake_nodes import FakeNodes

ALPHA = Node(
    "alpha",
    "alpha.home.arpa",
    "bee",
    "/home/bee/rbee",
    ssh_port=2222,
    ssh_key_path="/home/keeper/.ssh/id_ed25519",
    git_repo_url="https://example.org/rbee.git",
    git_branch="next",
    hive_port=9300,
    backends=["cuda", "cpu"],
    devices={"cuda": 2, "cpu": 1},
)
BETA = Node("beta", "beta.home.arpa", "bee", "/opt/rbee")


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeStore]:
    opened: NodeStore = FakeNodes() if request.param == "memory" else SqliteNodes(tmp_path / "beehives.db")
    yield opened
    opened.close()


def test_a_node_comes_back_as_it_was_added(store: NodeStore) -> None:
    store.add(ALPHA)
    store.add(BETA)
    assert store.get("alpha") == ALPHA
    assert store.get("beta") == BETA
    assert store.get("gamma") is None


def test_nodes_are_listed_in_order_of_insertion(store: NodeStore) -> None:
    store.add(BETA)
    store.add(ALPHA)
    assert [node.node_name for node in store.all()] == ["beta", "alpha"]


def test_a_name_is_taken_once(store: NodeStore) -> None:
    store.add(ALPHA)
    with pytest.raises(NodeExists):
        store.add(ALPHA)
    assert len(store.all()) == 1


def test_a_removed_node_is_gone_and_can_be_removed_once(store: NodeStore) -> None:
    store.add(ALPHA)
    assert store.remove("alpha") is True
    assert store.remove("alpha") is False
    assert store.all() == []


def test_a_replaced_node_keeps_its_place(store: NodeStore) -> None:
    from dataclasses import replace

    store.add(ALPHA)
    store.add(BETA)
    changed = replace(ALPHA, hive_port=9999, backends=None)
    assert store.replace(changed) is True
    assert store.all() == [changed, BETA]
    assert store.replace(replace(ALPHA, node_name="gamma")) is False


def test_a_contact_is_noted_and_nothing_else_changes(store: NodeStore) -> None:
    from dataclasses import replace

    store.add(ALPHA)
    store.add(BETA)
    store.note_contacts([])
    assert store.all() == [ALPHA, BETA]
    store.note_contacts(
        [
            Contact("alpha", NodeStatus.UNREACHABLE, 1_700_000_000, "Connection timeout"),
            Contact("nobody", NodeStatus.REACHABLE, 1, None),
            Contact("beta", NodeStatus.REACHABLE, 5, None),
        ]
    )
    assert store.get("beta") == replace(BETA, status=NodeStatus.REACHABLE, last_connected_unix=5)
    assert store.get("alpha") == replace(
        ALPHA,
        status=NodeStatus.UNREACHABLE,
        last_connected_unix=1_700_000_000,
        last_error="Connection timeout",
    )


def test_a_cordon_is_kept_until_it_is_lifted(store: NodeStore) -> None:
    assert store.cordons() == []
    store.set_cordon(Cordon("alpha", "new disk", 1_700_000_000))
    store.set_cordon(Cordon("alpha", "newer disk", 1_700_000_000))
    store.set_cordon(Cordon("localhost", "upgrade", 1_700_000_001))
    store.lift_cordon("localhost")
    store.lift_cordon("nobody")
    assert store.cordons() == [Cordon("alpha", "newer disk", 1_700_000_000)]


def test_there_is_one_roll_out_at_most(store: NodeStore) -> None:
    assert store.rollout() is None
    store.set_rollout(Rollout("0.2.0", "maya", 1_700_000_000))
    store.set_rollout(Rollout("0.2.1", "noor", 1_700_000_001))
    assert store.rollout() == Rollout("0.2.1", "noor", 1_700_000_001)
    store.set_rollout(None)
    assert store.rollout() is None


def test_what_another_program_writes_is_seen(tmp_path: Path) -> None:
    store = SqliteNodes(tmp_path / "beehives.db")
    store.add(ALPHA)
    assert store.all() == [ALPHA]
    other = SqliteNodes(tmp_path / "beehives.db")
    other.add(BETA)
    assert store.all() == [ALPHA, BETA]
    store.remove("alpha")
    assert (store.get("alpha"), other.get("alpha")) == (None, None)
    store.close()
    other.close()
