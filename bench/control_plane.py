"""What the queen costs between client and worker, beside a bare nginx and LiteLLM's proxy."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil

from bench.fleet import ROOT, Fleet
from bench.measuring import Goal, Table, milliseconds
from bench.proxies import litellm, nginx, worker_address

RATE, TOKENS = 20, 200
"""Of the scripted worker: tokens per second and stream, and tokens of a stream."""
STREAMS = 200
MANY_STREAMS, MANY_TOKENS = 1000, 40
LITELLM_STREAMS, LITELLM_TOKENS = 50, 100
_MB = 2**20


@dataclass(frozen=True)
class Side:
    """One way to the worker."""

    name: str
    url: str
    path: str
    key: str
    pid: int | None
    """The relay's; None: there is none."""
    form: str = "rbee"


@dataclass(frozen=True)
class Outcome:
    """What the clients saw, and what the relay took."""

    seen: dict[str, Any]
    cpu_s: float
    """Of the relay, per 10,000 tokens."""
    memory_mb: float
    """Resident, at its most, what processes share counted once."""


def run(side: Side, streams: int, tokens: int) -> Outcome:
    """All streams, once."""
    command = [sys.executable, "-m", "bench.load", side.url, side.path, str(streams), str(tokens)]
    processes = [] if side.pid is None else family(side.pid)
    before, peak, over = sum(map(_cpu_s, processes)), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.5):
            peak = max(peak, sum(each.memory_full_info().pss for each in processes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        extra = [side.key, side.form]
        done = subprocess.run([*command, *extra], cwd=ROOT, capture_output=True, text=True, check=True)
    finally:
        over.set()
        watcher.join()
    seen = json.loads(done.stdout)
    cpu_s = (sum(map(_cpu_s, processes)) - before) / max(1, seen["tokens"]) * 10_000
    return Outcome(seen, cpu_s, peak / _MB)


def measure() -> Table:
    """The same clients through each relay, one relay after the other, at 200 and at 1,000 streams."""
    rows: list[list[str]] = []
    with ExitStack() as stack:
        fleet = stack.enter_context(scripted_fleet(RATE))
        url, _, key = fleet.warm_worker()
        process = fleet.process
        if process is None:
            raise RuntimeError("the queen has not started")
        direct = Side("worker alone", url, "/v1/inference", key, None)
        queen = Side("queen-rbee", fleet.url, "/v2/tasks", fleet.key, process.pid)
        sides = [direct, queen]
        proxy = stack.enter_context(nginx(worker_address(url)))
        if proxy is not None:
            sides.append(Side("nginx", proxy[0], "/v1/inference", key, proxy[1]))
        # A process makes what it checks requests with at its first one; that is not what is measured.
        for side in sides:
            run(side, 2, 2)
        outcomes = {side.name: run(side, STREAMS, TOKENS) for side in sides}
        rows += [_row(name, STREAMS, outcome, outcomes["worker alone"]) for name, outcome in outcomes.items()]
        small = {"queen-rbee": run(queen, LITELLM_STREAMS, LITELLM_TOKENS)}
        usual = stack.enter_context(litellm(worker_address(url), key))
        if usual is not None:
            side = Side("LiteLLM", usual[0], "/v1/chat/completions", usual[2], usual[1], "openai")
            run(side, 2, 2)
            small["LiteLLM"] = run(side, LITELLM_STREAMS, LITELLM_TOKENS)
        alone = run(direct, LITELLM_STREAMS, LITELLM_TOKENS)
        rows += [_row(name, LITELLM_STREAMS, outcome, alone) for name, outcome in small.items()]
    with scripted_fleet(2) as fleet:
        url, _, key = fleet.warm_worker()
        process = fleet.process
        if process is None:
            raise RuntimeError("the queen has not started")
        alone = run(Side("worker alone", url, "/v1/inference", key, None), MANY_STREAMS, MANY_TOKENS)
        queen = Side("queen-rbee", fleet.url, "/v2/tasks", fleet.key, process.pid)
        run(queen, 2, 2)
        many = run(queen, MANY_STREAMS, MANY_TOKENS)
        rows.append(_row(queen.name, MANY_STREAMS, many, alone))
        with nginx(worker_address(url)) as proxy:
            if proxy is not None:
                bare = run(Side("nginx", proxy[0], "/v1/inference", key, proxy[1]), MANY_STREAMS, MANY_TOKENS)
                rows.append(_row("nginx", MANY_STREAMS, bare, alone))
    columns = ["relay", "streams", "failed", "added to first token p50", "p99", "added per token p50"]
    columns += ["CPU per 10,000 tokens", "memory"]
    note = (
        f"A scripted worker sends {RATE} tokens/s a stream ({TOKENS} tokens; 2 tokens/s at {MANY_STREAMS} "
        "streams); clients, relay and worker share the machine. The queen checks a key, places, counts, "
        "logs. Added: against the same clients at the worker."
    )
    return Table("Control plane", columns, rows, note, _goals(outcomes, small, many))


def _goals(outcomes: dict[str, Outcome], small: dict[str, Outcome], many: Outcome) -> list[Goal]:
    ours, alone = outcomes["queen-rbee"], outcomes["worker alone"]
    goals = [
        Goal("queen, added to a first token, p50", _added_ms(ours, alone, "first_p50"), 3, "ms"),
        Goal("queen, added to a first token, p99", _added_ms(ours, alone, "first_p99"), 15, "ms"),
        Goal("queen, memory at 1,000 streams", many.memory_mb, 120, "MB"),
        Goal("queen, failed of 1,000 streams", many.seen["failed"], 0.5, ""),
    ]
    if "nginx" in outcomes:
        goals.append(Goal("queen / nginx, CPU per token", ours.cpu_s / outcomes["nginx"].cpu_s, 2, ""))
    if "LiteLLM" in small:
        ratio = small["LiteLLM"].cpu_s / small["queen-rbee"].cpu_s
        goals.append(Goal("LiteLLM / queen, CPU per token", ratio, 12, "", is_minimum=True))
    return goals


def scripted_fleet(rate: int) -> Fleet:
    """A queen with a key, whose workers are scripts that send so many tokens per second and stream."""
    worker = f"{sys.executable} -m bench.emitter --rate {rate}"
    return Fleet(
        f'max_pending = 5000\n[pool]\nworker_command = "{worker}"\n',
        environment={"PYTHONPATH": str(ROOT)},
        has_key=True,
    )


def family(pid: int) -> list[psutil.Process]:
    """A relay's processes, without the hive and the worker below a queen."""
    found = [psutil.Process(pid)]
    for child in found[0].children(recursive=True):
        words = " ".join(child.cmdline())
        if "rbee-hive" not in words and "bench.emitter" not in words:
            found.append(child)
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _added_ms(outcome: Outcome, alone: Outcome, key: str) -> float:
    return 1000 * (outcome.seen[key] - alone.seen[key])


def _row(name: str, streams: int, outcome: Outcome, alone: Outcome) -> list[str]:
    is_relay = outcome is not alone and name != "worker alone"
    added = [
        milliseconds(outcome.seen[key] - (alone.seen[key] if is_relay else 0))
        for key in ("first_p50", "first_p99", "late_p50")
    ]
    cost = [f"{outcome.cpu_s:.2f} s", f"{outcome.memory_mb:.0f} MB"] if is_relay else ["", ""]
    return [name, str(streams), str(outcome.seen["failed"]), *added, *cost]
