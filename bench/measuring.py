"""Samples and the one way their tables are printed."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version


@dataclass(frozen=True)
class Goal:
    """One measured figure beside what it should reach."""

    what: str
    measured: float
    limit: float
    unit: str
    is_minimum: bool = False
    """Whether the figure should be at least ``limit`` instead of at most."""

    @property
    def share(self) -> float:
        """How much of what the goal allows is used; above 1 it is missed, below 0 nothing is used."""
        if not self.is_minimum:
            return self.measured / self.limit
        return self.limit / self.measured if self.measured > 0 else float("inf")

    @property
    def is_met(self) -> bool:
        return self.share <= 1

    def cells(self) -> list[str]:
        """A row of the table of goals."""
        bound = "at least" if self.is_minimum else "at most"
        verdict = "yes" if self.is_met else "NO"
        return [
            self.what,
            f"{self.measured:.4g} {self.unit}",
            f"{bound} {self.limit:.4g} {self.unit}",
            f"{self.share:.2f}",
            verdict,
        ]


@dataclass(frozen=True)
class Table:
    """A titled table of text cells, with a note on what it compares and the goals it decides."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    goals: Sequence[Goal] = field(default_factory=tuple)

    def text(self) -> str:
        """The table as Markdown."""
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"


def goals_table(goals: Sequence[Goal]) -> Table:
    """All goals of a run in one table of ratios."""
    columns = ["figure", "measured", "goal", "share of the goal used", "met"]
    return Table("Goals", columns, [goal.cells() for goal in goals])


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample below which ``share`` (0–1) of the samples lie."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def milliseconds(value_s: float) -> str:
    return f"{value_s * 1000:.2f} ms"


def machine() -> str:
    """One line on where the figures come from."""
    packages = ("ctranslate2", "gguf", "gevent", "gunicorn", "flask")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    host = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return f"{host}, Python {platform.python_version()}; {versions}"
