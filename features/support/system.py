"""Blep's home and system folders as paths of this machine, and programs run with copies of the latter."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from features.support.world import World

SYSTEM_FOLDERS = ("/usr/local/bin", "/etc", "/var/lib")
PROGRAMS = ("rbee-keeper", "rbee", "queen-rbee", "rbee-hive", "llm-worker-rbee")


def with_home(world: World, text: str) -> str:
    """Text of a scenario with placeholders put in and ``~`` as blep's home."""
    return world.fill(text).replace("~", str(world.fleet.blep.home))


def path(world: World, text: str) -> Path:
    """Where a path of blep lies on this machine."""
    named = Path(with_home(world, text))
    if world.system is not None:
        for folder in SYSTEM_FOLDERS:
            if named.is_relative_to(folder):
                return world.system / folder[1:] / named.relative_to(folder)
    return named


def can_mount() -> bool:
    """Whether this user may give a program mounts of its own."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0


def copy_system_folders(world: World) -> None:
    """Give what blep runs from now on copies of the system folders in place of the real ones."""
    world.system = world.fleet.folder / "system"
    mounts = []
    for folder in SYSTEM_FOLDERS:
        copy = world.system / folder[1:]
        copy.mkdir(parents=True)
        if folder != "/var/lib":
            # Programs are found in the one, users and libraries in the other; nothing reads the third.
            shutil.copytree(folder, copy, symlinks=True, dirs_exist_ok=True, ignore=_unreadable)
        mounts.append(f'mount --bind "{copy}" {folder}')
    script = " && ".join([*mounts, 'exec "$@"'])
    world.fleet.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]


def leave_root(world: World) -> None:
    """Run what blep runs from now on as an ordinary user."""
    if os.geteuid() == 0:
        world.fleet.prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


def installed_files() -> dict[str, int]:
    """What an installation for all users would write on this machine, with the time of its last change."""
    named = [Path("/usr/local/bin") / name for name in PROGRAMS]
    named += [
        Path("/etc/rbee"),
        Path("/etc/rbee/config.toml"),
        Path("/var/lib/rbee"),
        Path("/var/lib/rbee/models"),
    ]
    return {str(file): file.stat().st_mtime_ns for file in named if file.exists()}


def _unreadable(folder: str, names: list[str]) -> set[str]:
    """Sockets, pipes and the like, which cannot be copied."""
    return {
        name
        for name in names
        if not (file := Path(folder, name)).is_symlink() and not file.is_dir() and not file.is_file()
    }
