"""The packages of installations, fetched once per run; pip on the machines takes them from that folder."""

from __future__ import annotations

import configparser
import hashlib
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

from features.support.models import cache_folder
from features.support.sandbox import ROOT
from filelock import FileLock


def installer_variables() -> dict[str, str]:
    """Settings of pip and of the roles on a machine with a mirror of its own: no scenario waits for an index.

    Compiling all packages is half of an installation; what a scenario runs is compiled when it runs.
    """
    mirror = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(_folder())}
    return {**mirror, "UV_COMPILE_BYTECODE": "0"}


def prepare_packages() -> None:
    """Fetch what an installation of this project needs, and what builds it, unless an earlier run did."""
    folder = _folder()
    done = folder / "complete"
    with FileLock(str(folder.with_suffix(".lock"))):
        if done.exists():
            return
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--wheel-dir", str(folder), *_requirements()], check=True)
        done.touch()


def _folder() -> Path:
    key = hashlib.sha256("\n".join([sys.version, *_requirements()]).encode()).hexdigest()[:12]
    return cache_folder() / f"packages-{key}"


def _requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    wheelhouse = runpy.run_path(str(ROOT / "roles" / "rbee_base" / "files" / "wheelhouse.py"))
    return [*setup["options"]["install_requires"].split(), *build, wheelhouse["INSTALLER"]]
