"""A git repository of this project as it is now, for nodes to clone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from features.support.sandbox import ROOT

CONTENT = (
    *("services", "cli", "playbooks", "roles", "inventory"),
    *("setup.cfg", "pyproject.toml", "README.md", "LICENSE"),
)
IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]


def make_repository(folder: Path, branch: str) -> str:
    """Commit the sources to a new repository; its URL."""
    for name in CONTENT:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    git(folder, "init", "--quiet", f"--initial-branch={branch}")
    git(folder, "add", "--all")
    git(folder, *IDENTITY, "commit", "--quiet", "--message=All of it")
    return folder.as_uri()


def git(folder: Path, *args: str) -> str:
    """Run git in a folder; its output."""
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()
