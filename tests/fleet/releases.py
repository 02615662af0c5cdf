"""Releases of rbee that differ from this one by their version, or by what is broken in them."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("services", "cli", "playbooks", "roles", "inventory")
_FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def build_release(source: Path, dist: Path, version: str, broken: str = "") -> None:
    """Build the package of another version into ``dist``.

    Args:
        source: an empty folder, for the changed sources.
        broken: the service, ``hive`` or ``worker``, that is to end at its start.
    """
    for name in _FOLDERS:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in _FILES:
        shutil.copy(ROOT / name, source / name)
    initial = source / "services" / "rbee" / "__init__.py"
    initial.write_text(initial.read_text().replace("0.1.0", version))
    if broken:
        service = source / "services" / "rbee" / broken / "service.py"
        service.write_text(service.read_text() + '\nraise RuntimeError("broken on purpose")\n')
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(dist), str(source)], check=True, capture_output=True)
