"""behave's hooks: a fresh world for each scenario, and nothing of it left afterwards."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests", ROOT / "services", ROOT / "cli"):
    sys.path.insert(0, str(folder))

from features.support.fleet import Fleet  # noqa: E402
from features.support.models import prepare_models  # noqa: E402
from features.support.sandbox import make_folder, remove_folder  # noqa: E402
from features.support.world import World  # noqa: E402

from support.sshd import find_sshd  # noqa: E402


def before_all(context: Any) -> None:
    """Check what the suite cannot run without, and fetch the model once."""
    find_sshd()
    context.has_cuda = shutil.which("nvidia-smi") is not None
    prepare_models()


def before_scenario(context: Any, scenario: Any) -> None:
    """Make the world, or skip with the reason why this machine cannot show the scenario."""
    tags = set(scenario.effective_tags)
    if "needs-cuda" in tags and not context.has_cuda:
        scenario.skip("this machine has no CUDA device")
        return
    if "needs-root" in tags and os.geteuid() != 0:
        scenario.skip("this scenario needs root")
        return
    if "slow" in tags and not context.config.userdata.getbool("slow", False):
        scenario.skip("nightly: behave -D slow=true")
        return
    context.folder = make_folder()
    context.world = World(Fleet(context.folder))


def after_scenario(context: Any, scenario: Any) -> None:
    """End what was started; a process that is still alive fails the scenario."""
    if not hasattr(context, "world"):
        return
    left = context.world.fleet.end()
    failed = scenario.status.name == "failed"
    if failed:
        print(_logs(context.folder))
    if not os.environ.get("RBEE_FEATURES_KEEP"):
        remove_folder(context.folder)
    assert not left, f"still alive after the scenario: {left}"


def _logs(folder: Path) -> str:
    shown = []
    for file in sorted(folder.rglob("*.log")):
        lines = file.read_text(errors="replace").splitlines()[-15:]
        shown.append(f"--- {file.relative_to(folder)}\n" + "\n".join(line[:400] for line in lines))
    return "\n".join(shown)
