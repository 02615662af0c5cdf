"""Placing in a fleet of many nodes: few are asked, and nobody is refused by what was known before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from rbee.core.client import TransportFailure
from rbee.core.errors import MemoryExhausted, ServiceUnavailable
from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet
from rbee.queen.node_views import FEW
from rbee.queen.placement import Wanted
from rbee.queen.ports import Capabilities, HiveHealth, WorkerRecord
from rbee.queen.registry import Node, Nodes, builtin_node
from rbee.queen.scheduling import Scheduler
from rbee.testing.fake_nodes import FakeNodes

MODEL = "file:/m.gguf"
WANTED = Wanted(MODEL)
MB = 2**20


@dataclass
class Hive:
    """One hive, and what was asked of it."""

    is_up: bool = True
    worker: WorkerState | None = None
    ram_mb: int = 8000
    has_model: bool = True
    is_readable: bool = True
    asked: list[str] = field(default_factory=list)

    def _answer(self, what: str, answer: Any) -> Any:
        self.asked.append(what)
        if not self.is_up:
            raise TransportFailure("refused", "Connection refused")
        if not self.is_readable and what == "workers":
            raise ValueError("not an http URL")
        return answer

    def health(self, _timeout_s: float) -> HiveHealth:
        return self._answer("health", HiveHealth("alive", "1", "operator", 1))

    def workers(self, _timeout_s: float) -> list[WorkerRecord]:
        state = self.worker
        records = [WorkerRecord("w", "http://h:1", MODEL, "cpu", 0, state, 1, 1)] if state else []
        return self._answer("workers", records)

    def models(self) -> list[dict[str, Any]]:
        return self._answer("models", [{"model_ref": MODEL, "size_bytes": MB}] if self.has_model else [])

    def capabilities(self) -> Capabilities:
        return self._answer("capabilities", Capabilities(["cpu"], {"cpu": 1}, self.ram_mb, {}, 100_000))

    def detect(self) -> Capabilities:
        self.asked.append("detect")
        return Capabilities(["cpu"], {"cpu": 1}, self.ram_mb, {}, 100_000)


class Crowd:
    """A queen's fleet of many hives, by node; localhost takes no tasks."""

    def __init__(self, count: int) -> None:
        self.hives = {f"n{number}": Hive() for number in range(count)}
        self.nodes = Nodes(FakeNodes, builtin_node(1))
        for name in self.hives:
            self.nodes.add(Node(name, "h", "u", "/p"))
        self.nodes.cordons.set("localhost", "not meant")
        peers = SimpleNamespace(hive=lambda node: self.hives[node.node_name])
        launcher = SimpleNamespace(detect=lambda node: self.hives[node.node_name].detect())
        fleet = Fleet(self.nodes, peers, lambda _node: launcher, "q", "1", Timing())  # type: ignore[arg-type, return-value]
        self.scheduler = Scheduler(fleet)

    def place(self, wanted: Wanted = WANTED) -> str:
        return self.scheduler.place(wanted)[0].node_name

    def forget_what_was_asked(self) -> None:
        for hive in self.hives.values():
            hive.asked.clear()

    def asked(self) -> list[str]:
        """The nodes that were asked since."""
        return [name for name, hive in self.hives.items() if hive.asked]


def swept(count: int = 30, **hives: Hive) -> Crowd:
    """A crowd whose queen knows everybody."""
    crowd = Crowd(count)
    crowd.hives |= hives
    crowd.scheduler.views.sweep()
    crowd.forget_what_was_asked()
    return crowd


def test_of_many_nodes_only_those_with_an_idle_worker_are_asked_and_only_for_it() -> None:
    crowd = swept(n7=Hive(worker=WorkerState.IDLE), n20=Hive(worker=WorkerState.BUSY))
    assert crowd.place() == "n7"
    assert len(crowd.asked()) <= FEW
    assert crowd.hives["n7"].asked == ["workers"]


def test_of_many_idle_workers_no_more_than_a_few_are_asked() -> None:
    idle = {f"n{number}": Hive(worker=WorkerState.IDLE) for number in range(30)}
    crowd = swept(**idle)
    taken = set()
    for _ in range(10):
        crowd.forget_what_was_asked()
        name = crowd.place()
        assert len(crowd.asked()) <= FEW
        crowd.hives[name].worker = WorkerState.BUSY
        taken.add(name)
    assert len(taken) == 10


def test_what_has_changed_since_the_sweep_is_found_out_before_it_counts() -> None:
    crowd = swept(n3=Hive(worker=WorkerState.IDLE), n4=Hive(worker=WorkerState.IDLE))
    crowd.hives["n3"].worker = WorkerState.BUSY
    assert crowd.place() == "n4"
    crowd.hives["n4"].is_up = False
    crowd.hives["n5"].ram_mb = 64_000
    assert crowd.place() not in ("n3", "n4")


def test_nobody_is_refused_by_what_was_known_before() -> None:
    full = {f"n{number}": Hive(ram_mb=1) for number in range(30)}
    crowd = swept(**full)
    with pytest.raises(MemoryExhausted):
        crowd.place()
    crowd.hives["n29"].ram_mb = 8000
    assert crowd.place() == "n29"


def test_when_those_that_looked_best_have_gone_all_are_asked() -> None:
    few = {f"n{number}": Hive(ram_mb=64_000) for number in range(4 * FEW)}
    crowd = swept(**few)
    for hive in crowd.hives.values():
        hive.is_up = False
    crowd.hives["n29"].is_up = True
    crowd.hives["n29"].worker = WorkerState.IDLE
    assert crowd.place() == "n29"


def test_a_cordon_counts_at_once_and_so_does_its_end() -> None:
    crowd = swept(n7=Hive(worker=WorkerState.IDLE))
    crowd.nodes.cordons.set("n7", "new disk")
    assert crowd.place() != "n7"
    crowd.scheduler.views.sweep()
    assert crowd.place() != "n7"
    crowd.nodes.cordons.lift("n7")
    assert crowd.place() == "n7"


def test_a_node_that_is_removed_is_never_chosen_and_one_of_its_name_is_another() -> None:
    crowd = swept(n7=Hive(worker=WorkerState.IDLE))
    node = crowd.nodes.find("n7")
    crowd.nodes.remove("n7")
    assert crowd.place() != "n7"
    crowd.hives["n7"] = Hive(ram_mb=1)
    crowd.nodes.add(replace(node, ssh_host="other"))
    crowd.scheduler.views.sweep()
    assert crowd.place() != "n7"


def test_a_node_without_a_hive_is_looked_at_over_ssh_once_and_not_by_sweeps() -> None:
    crowd = Crowd(30)
    bare = crowd.hives["n7"]
    bare.is_up = False
    crowd.scheduler.views.sweep()
    assert "detect" not in bare.asked
    crowd.place()
    assert bare.asked.count("detect") == 1
    for _ in range(3):
        crowd.scheduler.views.sweep()
    assert bare.asked.count("detect") == 1
    bare.ram_mb = 64_000
    crowd.hives |= {name: Hive(is_up=False) for name in crowd.hives if name != "n7"}
    assert crowd.place() == "n7"


def test_a_hive_that_has_ended_is_not_taken_for_one_that_runs() -> None:
    crowd = swept(n7=Hive(worker=WorkerState.IDLE))
    crowd.hives["n7"].is_up = False
    crowd.scheduler.views.sweep()
    assert crowd.place() != "n7"


def test_failed_nodes_are_out_of_the_question() -> None:
    crowd = swept(n7=Hive(worker=WorkerState.IDLE))
    assert crowd.scheduler.place(WANTED, ["n7"])[0].node_name != "n7"


def test_a_small_fleet_is_asked_as_a_whole_and_never_swept() -> None:
    crowd = Crowd(FEW - 1)
    crowd.scheduler.views.sweep()
    assert crowd.asked() == []
    crowd.place()
    assert len(crowd.asked()) == FEW - 1


def test_a_hive_that_answers_nonsense_is_a_node_that_does_not_fit() -> None:
    crowd = swept(5)
    for hive in crowd.hives.values():
        hive.is_readable = False
    with pytest.raises(ServiceUnavailable, match="n4: unreadable answer of its hive"):
        crowd.place()
