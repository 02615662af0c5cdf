"""Mixed requests over a real fleet with random kills: at the end nothing is wrong, left or grown.

``RBEE_SOAK_MINUTES`` makes it long (``make soak``), ``RBEE_SOAK_SEED`` repeats the choices of an earlier run.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import time
from pathlib import Path

import pytest

from support.soak_fleet import Footprint, SoakFleet
from support.soak_traffic import Traffic, summary
from support.tiny_ct2 import write_tiny_model

MINUTES = float(os.environ.get("RBEE_SOAK_MINUTES", "0"))
SEED = int(os.environ.get("RBEE_SOAK_SEED") or random.randrange(1_000_000))
CLIENTS = 4
SHORT_S, SHORT_WARM_UP_S = 12.0, 5.0
GROWTH_MIB, GROWTH_DESCRIPTORS = 12.0, 4
"""What a daemon may hold more after the run than after the warm-up, both times with nothing to do."""


@pytest.mark.timeout(MINUTES * 60 + 600)
def test_a_fleet_under_mixed_load_and_kills_stays_sound(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    print(f"\nseed {SEED}")
    models = [f"file:{write_tiny_model(tmp_path / 'model')}"]
    if MINUTES:
        models.append(f"file:{request.getfixturevalue('embedded_gguf')}")
    seconds = MINUTES * 60 or SHORT_S
    began = time.monotonic()
    with SoakFleet(tmp_path) as fleet:
        # The hive of node "two" lives from the warm-up to the end, so that its growth can be told.
        traffic = Traffic(fleet, SEED, models, ["localhost", "one"], kill_every_s=3.0 if MINUTES else 1.0)
        on_all_nodes(fleet, models[0])
        traffic.run(max(SHORT_WARM_UP_S, seconds / 5), CLIENTS)
        before = quiet(fleet)
        traffic.run(seconds, CLIENTS)
        after = quiet(fleet)
        print(summary(traffic))
        print_growth(before, after)
        print(f"took {time.monotonic() - began:.0f} s")
        assert traffic.defects == []
        assert traffic.outcomes["complete: ok"] > 0
        assert sum(traffic.kills.values()) > 0
        assert_flat(before, after)
        assert_consistent(fleet, models[0])
        assert fleet.end_queen() == 0
        assert fleet.left() == []
        for state in fleet.states().values():
            assert list((state / "run").glob("*.key")) == []
            assert fleet.rows(state, "workers.db", "worker_pids") == []
        assert "Traceback" not in (fleet.home / ".rbee" / "logs" / "queen-rbee.log").read_text()


def quiet(fleet: SoakFleet) -> dict[str, Footprint]:
    """What queen and the steady hive hold while nothing runs."""
    fleet.quieten()
    found = {"queen": fleet.footprint(fleet.queen.pid)}
    hive = fleet.hive("two")
    return {**found, "hive": fleet.footprint(hive.pid)} if hive else found


def on_all_nodes(fleet: SoakFleet, model: str) -> None:
    """A task on every node; afterwards each has an idle worker."""
    nodes = ["localhost", *fleet.nodes]
    with concurrent.futures.ThreadPoolExecutor(len(nodes)) as pool:
        ends = list(pool.map(lambda node: fleet.infer(model, node), nodes))
    assert [end.get("done") for end in ends] == [True] * len(nodes), ends


def print_growth(before: dict[str, Footprint], after: dict[str, Footprint]) -> None:
    for name, end in after.items():
        if name in before:
            start = before[name]
            print(
                f"{name}: {start.rss_mib:.1f} -> {end.rss_mib:.1f} MiB, "
                f"{start.descriptors} -> {end.descriptors} descriptors"
            )


def assert_flat(before: dict[str, Footprint], after: dict[str, Footprint]) -> None:
    assert set(before) == set(after) == {"queen", "hive"}
    for name, end in after.items():
        start = before[name]
        assert end.pid == start.pid, f"{name} is another process"
        assert end.rss_mib - start.rss_mib < GROWTH_MIB, (name, start, end)
        assert end.descriptors - start.descriptors <= GROWTH_DESCRIPTORS, (name, start, end)


def assert_consistent(fleet: SoakFleet, model: str) -> None:
    """Queen, hives, journals and processes agree on one worker per node, and each has its slot free."""
    on_all_nodes(fleet, model)
    listed = fleet.listed()["workers"]
    assert sorted(worker["node"] for worker in listed) == sorted(["localhost", *fleet.nodes])
    assert {(w["state"], w["slots_available"], w["slots_total"]) for w in listed} == {("idle", 1, 1)}
    journals = [fleet.rows(state, "workers.db", "worker_pids") for state in fleet.states().values()]
    journaled = sorted(row[0] for rows in journals for row in rows)
    assert journaled == sorted(worker["worker_id"] for worker in listed)
    assert len(fleet.workers()) == len(listed)
    nodes = fleet.rows(fleet.home / ".rbee", "beehives.db", "beehives")
    assert sorted(row[0] for row in nodes) == sorted(fleet.nodes)
