"""What grows with the fleet: placing a task, sweeping and listing, with 10, 100 and 1,000 nodes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import requests

from bench.crowd import MODEL, address
from bench.fleet import ROOT, Fleet, Home
from bench.measuring import Goal, Table, median, milliseconds, percentile
from rbee.queen.adapters.sqlite_nodes import SqliteNodes
from rbee.queen.registry import Node

SIZES = (10, 100, 1000)
TASKS = 30
"""At work at once in the end, each on a worker of its own; a fleet of ten has a third of them."""
_SWEEP_INTERVAL_S = 15
"""Half of what it usually is."""


@dataclass(frozen=True)
class Costs:
    """Seconds, of one fleet."""

    nodes: int
    placements: list[float]
    first_tokens: list[float]
    listing: float
    statuses: float
    sweep_cpu: float
    """For each sweep, what an idle queen needs anyway included."""


def measure() -> Table:
    """One fleet after the other; the hives of each are a script, the queen is real."""
    found = [_costs(size) for size in SIZES]
    columns = ["nodes", "placement p50", "at most", "first token p50", "CPU of a sweep", "per node"]
    columns += ["`workers list`", "`node status`"]
    rows = [
        [
            str(c.nodes),
            milliseconds(median(c.placements)),
            milliseconds(max(c.placements)),
            milliseconds(median(c.first_tokens)),
            milliseconds(c.sweep_cpu),
            milliseconds(c.sweep_cpu / c.nodes),
            milliseconds(c.listing),
            milliseconds(c.statuses),
        ]
        for c in found
    ]
    note = (
        f"Up to {TASKS} tasks are given out one after the other, each stays at work, so that each has to be "
        "placed anew; then, with all of them open, every node is listed. A sweep asks each hive for its "
        "health, workers, models and capabilities, spread over 30 seconds."
    )
    middle, large = found[-2], found[-1]
    ratio = large.nodes / middle.nodes
    goals = [
        Goal("placement at 1,000 nodes, p95", 1000 * percentile(large.placements, 0.95), 5, "ms"),
        Goal("sweep's CPU, 1,000 to 100 nodes", large.sweep_cpu / middle.sweep_cpu, 1.2 * ratio, "times"),
        Goal("workers list, 1,000 to 100 nodes", large.listing / middle.listing, 1.2 * ratio, "times"),
    ]
    return Table("Fleet growth", columns, rows, note, goals)


def _costs(size: int) -> Costs:
    with ExitStack() as stack:
        port = stack.enter_context(_crowd(size))
        config = f"max_pending = 5000\n[timing]\nhealth_probe_interval_s = {_SWEEP_INTERVAL_S}\n"
        Home("growth").forget()
        fleet = Fleet(config, name="growth")
        store = SqliteNodes(fleet.home.path / "state" / "beehives.db")
        for number in range(size):
            store.add(Node(f"n{number}", address(number), "bench", "/opt/rbee", hive_port=port))
        store.close()
        stack.enter_context(fleet)
        requests.post(f"{fleet.url}/v2/nodes/localhost/cordon", json={"reason": "not measured"}, timeout=10)
        if fleet.process is None:
            raise RuntimeError("the queen has not started")
        process = psutil.Process(fleet.process.pid)
        family = [process, *process.children(recursive=True)]
        _metric(fleet, "rbee_queen_sweeps_total", 1)
        cpu = _cpu_s(family)
        _metric(fleet, "rbee_queen_sweeps_total", 2)
        cpu = _cpu_s(family) - cpu
        placements, firsts = _give_out(fleet, stack, min(TASKS, size * 3 // 10))
        began = time.perf_counter()
        listed = requests.get(f"{fleet.url}/v2/workers/list", timeout=120).json()
        listing = time.perf_counter() - began
        if len(listed["workers"]) != size or listed["unreachable"]:
            raise RuntimeError(f"{len(listed['workers'])} of {size} workers listed")
        began = time.perf_counter()
        requests.get(f"{fleet.url}/v2/nodes", timeout=120).raise_for_status()
        statuses = time.perf_counter() - began
        return Costs(size, placements, firsts, listing, statuses, cpu)


def _give_out(fleet: Fleet, stack: ExitStack, count: int) -> tuple[list[float], list[float]]:
    """Tasks that stay open: how long each took to place, and to its first token."""
    placements, firsts = [], []
    name = "rbee_queen_placement_seconds"
    for _ in range(count):
        before, spent = _metric(fleet, f"{name}_count"), _metric(fleet, f"{name}_sum")
        began = time.perf_counter()
        stream = stack.enter_context(fleet.task({"prompt": "Hi", "model": MODEL, "max_tokens": 2000}))
        for line in stream.iter_lines(chunk_size=1):
            if b'"error"' in line:
                raise RuntimeError(line.decode())
            if b'"token"' in line:
                break
        firsts.append(time.perf_counter() - began)
        after, total = _metric(fleet, f"{name}_count"), _metric(fleet, f"{name}_sum")
        placements.append((total - spent) / (after - before))
    return placements, firsts


def _metric(fleet: Fleet, name: str, at_least: float = 0) -> float:
    """A figure of the queen, once it is large enough."""
    deadline = time.monotonic() + 300
    while True:
        text = requests.get(f"{fleet.url}/metrics", timeout=30).text
        found = re.search(rf"^{name} (\S+)$", text, re.M)
        value = float(found.group(1)) if found else 0.0
        if value >= at_least:
            return value
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} is {value:g}, not {at_least:g}")
        time.sleep(1)


def _cpu_s(family: list[psutil.Process]) -> float:
    return sum(p.cpu_times().user + p.cpu_times().system for p in family)


@contextmanager
def _crowd(count: int) -> Iterator[int]:
    command = [sys.executable, "-m", "bench.crowd", str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield int(line.rsplit(" ", 1)[1])
        finally:
            process.terminate()
