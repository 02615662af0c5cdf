"""Whether the queen's memory stays flat: ten minutes of streams, one wave after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil

from bench.control_plane import family, scripted_fleet
from bench.fleet import ROOT
from bench.measuring import Goal, Table, median

MINUTES = float(os.environ.get("RBEE_BENCH_MINUTES", "10"))
STREAMS, TOKENS, RATE = 100, 100, 20
_SHARE = 0.2
"""Of the waves, that make up what is compared as the beginning and the end."""
_SETTLING_WAVES = 5
"""Not counted: what is loaded and kept once."""
_MB = 2**20


def measure() -> Table:
    """Each wave opens its streams within a second and reads them to their end; memory is read after each."""
    memory: list[float] = []
    failed = tokens = 0
    with scripted_fleet(RATE) as fleet:
        fleet.warm_worker()
        if fleet.process is None:
            raise RuntimeError("the queen has not started")
        processes = family(fleet.process.pid)
        command = [sys.executable, "-m", "bench.load", fleet.url, "/v2/tasks", str(STREAMS), str(TOKENS)]
        end = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end or len(memory) < 2 * _SETTLING_WAVES:
            extra = [fleet.key, "rbee"]
            done = subprocess.run([*command, *extra], cwd=ROOT, capture_output=True, text=True, check=True)
            seen = json.loads(done.stdout)
            failed += seen["failed"]
            tokens += seen["tokens"]
            memory.append(_pss_mb(processes))
    counted = memory[_SETTLING_WAVES:]
    few = max(1, int(_SHARE * len(counted)))
    first, last = median(counted[:few]), median(counted[-few:])
    rows = [
        ["waves of streams", str(len(memory))],
        ["tokens", f"{tokens:,}"],
        ["failed", str(failed)],
        [f"memory, first {few} counted waves", f"{first:.1f} MB"],
        [f"memory, last {few} waves", f"{last:.1f} MB"],
        ["at most", f"{max(counted):.1f} MB"],
    ]
    note = (
        f"{MINUTES:g} minutes (RBEE_BENCH_MINUTES), {STREAMS} streams of {TOKENS} tokens a wave, {RATE} "
        "tokens/s each, from a scripted worker; resident memory of the queen, what processes share counted "
        "once."
    )
    goal = Goal("queen's memory, end against beginning", last / first, 1.02, "")
    return Table("Endurance", ["", ""], rows, note, [goal])


def _pss_mb(processes: list[psutil.Process]) -> float:
    return sum(each.memory_full_info().pss for each in processes) / _MB
