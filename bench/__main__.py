"""`python -m bench [NAME …]`: run the benchmarks; tables and a plot of the goals go to bench/results/."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from bench.measuring import Goal, Table, goals_table, machine
from bench.plot import plot_goals

NAMES = (
    "startup",
    "relay",
    "decoding",
    "serving",
    "prefixes",
    "control_plane",
    "endurance",
    "growth",
    "rollout",
    "conversion",
    "quality",
    "download",
)
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; returns the exit code."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(
            f"Error: no benchmark named {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}",
            file=sys.stderr,
        )
        return 2
    RESULTS.mkdir(exist_ok=True)
    goals: list[Goal] = []
    report = f"{time.strftime('%Y-%m-%d')}, {machine()}\n\n"
    print(report, end="")
    for name in names or NAMES:
        measure: Callable[[], Table] = import_module(f"bench.{name}").measure
        table = measure()
        goals += table.goals
        print(table.text(), flush=True)
        report += table.text() + "\n"
    if goals:
        print(goals_table(goals).text(), flush=True)
        report += goals_table(goals).text()
        plot_goals(goals, machine(), RESULTS / "latest.png")
    (RESULTS / "latest.md").write_text(report, encoding="utf-8")
    return 0


if __name__ == "__main__":
    # Ended from outside, a benchmark still ends the queen it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
