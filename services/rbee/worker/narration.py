"""What the worker tells people while it starts: JSON lines on standard output, which the hive reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rbee.core.events import narration

Narrator = Callable[[str, str, str], None]
"""Takes actor, action and text."""


def startup_narrator(log: Any, out: TextIO | None = None) -> Narrator:
    """A narrator that prints each line at once and copies it to the log."""

    def narrate(actor: str, action: str, human: str) -> None:
        line = {"type": "narration", **narration(actor, action, human)}
        print(json.dumps(line, ensure_ascii=False), file=out or sys.stdout, flush=True)
        log_narration(log, actor, action, human)

    return narrate


def log_narration(log: Any, actor: str, action: str, human: str) -> None:
    """The copy of a narration line that goes to the log."""
    log.info("narration", message=human, actor=actor, action=action)
