"""Makes sure that Ansible is there: an extra, added by itself where the launcher made the environment."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from rbee_keeper.bootstrap import CHECKOUT_STAMP
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.terminal import Terminal

_EXTRA = "ansible"


def ensure_ansible(terminal: Terminal) -> None:
    """Install Ansible into the launcher's own environment if it is missing there.

    Raises:
        KeeperFailure: it is missing and this environment is not ours to change, or it cannot be had.
    """
    if importlib.util.find_spec("ansible_runner") and importlib.util.find_spec("ansible"):
        return
    if not (Path(sys.prefix) / CHECKOUT_STAMP).exists():
        raise KeeperFailure(
            "Ansible is not installed in this Python environment",
            suggestion=f"{sys.executable} -m pip install 'rbee[{_EXTRA}]'",
        )
    terminal.note("Adding Ansible to rbee's environment (only once) ...")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [*command, *requirements()], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise KeeperFailure(
            "Ansible could not be installed",
            details=(done.stdout + done.stderr).strip().splitlines()[-8:],
            suggestion=f"{sys.executable} -m pip install 'rbee[{_EXTRA}]'",
        )
    importlib.invalidate_caches()


def requirements() -> list[str]:
    """What the extra consists of, as the package's metadata names it."""
    entries = importlib.metadata.requires("rbee") or []
    pattern = re.compile(rf"""extra\s*==\s*['"]{_EXTRA}['"]""")
    return [entry.partition(";")[0].strip() for entry in entries if pattern.search(entry)]
