"""Placing in a fleet of many nodes: few are asked, and nobody is refused by what was known before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rbee.core.errors import MemoryExhausted, ServiceUnavailable
from rbee.core.lifecycle import WorkerState
from rbee.queen.node_views import FEW
from support.crowd import WANTED, Crowd, Hive


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
