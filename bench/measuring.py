"""Samples and the one way their tables are printed."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Table:
    """A titled table of text cells, with a note on what it compares."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def text(self) -> str:
        """The table as Markdown."""
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"


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
