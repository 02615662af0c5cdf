"""behave's hooks: a fresh world for each scenario, and nothing of it left afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import parse
from behave import register_type

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "tests", ROOT):
    sys.path.insert(0, str(folder))

from features.support.fleet import Fleet  # noqa: E402
from features.support.models import prepare_models  # noqa: E402
from features.support.packages import prepare_packages  # noqa: E402
from features.support.results import Outcome, note_outcome  # noqa: E402
from features.support.sandbox import make_folder, remove_folder  # noqa: E402
from features.support.system import can_mount  # noqa: E402
from features.support.world import World  # noqa: E402

from support.sshd import find_sshd  # noqa: E402

LOG_LINES = 20
POLL = re.compile(r"GET /(v1/(ready|workers/list|health)|health) 200")


@parse.with_pattern(r'[^"]*')
def quoted(text: str) -> str:
    """What stands between two quotes; it holds none, so that steps cannot be taken for each other."""
    return text


@parse.with_pattern(r'"[^"]*"(?:, "[^"]*")*(?: and "[^"]*")?')
def quoted_names(text: str) -> list[str]:
    """Several quoted names: ``"A", "B" and "C"``."""
    return re.findall(r'"([^"]*)"', text)


register_type(Text=quoted, Names=quoted_names)


def before_all(context: Any) -> None:
    """Check what the suite cannot run without, and fetch the model and the packages once."""
    find_sshd()
    prepare_models()
    prepare_packages()
    has = {
        "needs-cuda": (shutil.which("nvidia-smi") is not None, "this machine has no CUDA device"),
        "needs-root": (os.geteuid() == 0 and can_mount(), "this user cannot be root in mounts of its own"),
        "slow": (context.config.userdata.getbool("slow", False), "nightly: behave -D slow=true"),
    }
    context.lacks = {tag: reason for tag, (is_there, reason) in has.items() if not is_there}


def before_scenario(context: Any, scenario: Any) -> None:
    """Make the world, or skip with the reason why this machine cannot show the scenario."""
    for tag, reason in context.lacks.items():
        if tag in scenario.effective_tags:
            scenario.skip(reason)
            note_outcome(Outcome(scenario.name, "skipped", 0.0, reason))
            return
    context.began = time.monotonic()
    context.folder = make_folder()
    context.world = World(Fleet(context.folder))


def after_scenario(context: Any, scenario: Any) -> None:
    """End what was started; what is still there afterwards fails the scenario."""
    if "world" not in context:
        return
    left = context.world.fleet.end()
    status = "left something" if left else scenario.status.name
    if status != "passed":
        print(_logs(context.folder))
    if os.environ.get("RBEE_FEATURES_KEEP"):
        print(f"kept: {context.folder}")
    else:
        remove_folder(context.folder)
    note_outcome(Outcome(scenario.name, status, time.monotonic() - context.began, "; ".join(left)))
    assert not left, f"left after the scenario: {left}"


def _logs(folder: Path) -> str:
    """The ends of all logs, one short line per event; polls are left out."""
    shown = []
    for file in sorted(folder.rglob("*.log")):
        lines = [_short(line) for line in file.read_text(errors="replace").splitlines()]
        told = [line for line in lines if not POLL.search(line)]
        shown += [f"--- {file.relative_to(folder)}", *told[-LOG_LINES:]]
    return "\n".join(shown)


def _short(line: str) -> str:
    try:
        entry = json.loads(line)
        return f"{entry['timestamp'][11:23]} {entry['event']} {entry.get('message', '')}"[:200]
    except (ValueError, KeyError, TypeError):
        return line[:200]
