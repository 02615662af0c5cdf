"""The outcome of each scenario as a line of a file, for whoever runs several behave processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS_VARIABLE = "RBEE_FEATURES_RESULTS"


@dataclass(frozen=True)
class Outcome:
    """How a scenario ended; ``reason`` says why it was skipped, or what was left of it."""

    name: str
    status: str
    seconds: float
    reason: str = ""

    @property
    def is_fine(self) -> bool:
        return self.status == "passed" or (self.status == "skipped" and bool(self.reason))


def note_outcome(outcome: Outcome) -> None:
    """Write the line, where somebody asked for it."""
    named = os.environ.get(RESULTS_VARIABLE)
    if named:
        with Path(named).open("a") as results:
            results.write(json.dumps(asdict(outcome)) + "\n")


def read_outcomes(results: Path) -> list[Outcome]:
    if not results.exists():
        return []
    return [Outcome(**json.loads(line)) for line in results.read_text().splitlines()]
