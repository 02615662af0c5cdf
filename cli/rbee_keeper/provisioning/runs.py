"""The record of playbook runs: one folder each, the newest kept, read back by ``setup history``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT_RUNS = 50
OUTPUT_LIMIT_BYTES = 1_048_576
_RECORD, _OUTPUT = "run.json", "output.log"


@dataclass(frozen=True)
class RunRecord:
    """Who did what where, and how it ended.

    Attributes:
        outcome: ``succeeded``, ``failed``, ``canceled``, or ``running`` while it lasts (and for ever when the
            machine died under it).
        changed: how many changes each node saw.
        failures: the failed task and its reason by node.
    """

    started: str
    who: str
    operation: str
    nodes: Sequence[str]
    version: str
    check: bool
    outcome: str = "running"
    duration_s: float = 0.0
    changed: Mapping[str, int] | None = None
    failures: Mapping[str, str] | None = None


class RunFolder:
    """The folder of one run: its record, and what Ansible printed up to a bound."""

    def __init__(self, runs: Path, nodes: Sequence[str]) -> None:
        name = nodes[0] if len(nodes) == 1 else "fleet"
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        self.path = runs / f"{stamp}-{name}"
        self.path.mkdir(mode=0o700, parents=True)
        self._written = 0
        _drop_old(runs)

    @property
    def output(self) -> Path:
        """What Ansible has printed."""
        return self.path / _OUTPUT

    def write(self, record: RunRecord) -> None:
        """Replace the record; a reader never sees half of it."""
        fresh = self.path / f".{_RECORD}"
        fresh.write_text(json.dumps(asdict(record), ensure_ascii=False))
        fresh.replace(self.path / _RECORD)

    def add_output(self, text: str) -> None:
        """Append to the output, of which the first megabyte is kept."""
        data = (text + "\n").encode(errors="replace")[: max(0, OUTPUT_LIMIT_BYTES - self._written)]
        if data:
            with self.output.open("ab") as file:
                file.write(data)
            self._written += len(data)


def read_runs(runs: Path) -> list[dict[str, Any]]:
    """The records of all kept runs, the newest first; what cannot be read is left out."""
    found = []
    for folder in sorted(runs.glob("*-*"), reverse=True):
        try:
            record = json.loads((folder / _RECORD).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            found.append({**record, "folder": str(folder)})
    return found


def _drop_old(runs: Path) -> None:
    for folder in sorted(runs.glob("*-*"), reverse=True)[KEPT_RUNS:]:
        shutil.rmtree(folder, ignore_errors=True)
