"""One scenario's own world on disk: home, state, configuration, and an environment built from nothing."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.support.processes import MODULES

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS_VARIABLE = "RBEE_FEATURES_PROGRAMS"
"""Names a folder whose programs are used instead of the installed ones (the self-check does)."""
API_KEY = "features-key-0123456789"


def program(name: str) -> list[str]:
    """The argv of one of our programs: the installed script, or its module where none is installed."""
    named = os.environ.get(PROGRAMS_VARIABLE)
    if named:
        return [str(Path(named) / name)]
    script = Path(sys.executable).parent / name
    return [str(script)] if script.exists() else [sys.executable, "-m", MODULES[name]]


def stand_in(name: str) -> list[str]:
    """The argv of a program of ``services/rbee/testing``; they need nothing but Python."""
    return [sys.executable, "-P", str(ROOT / "services" / "rbee" / "testing" / f"{name}.py")]


class Sandbox:
    """A machine's view of the world: the control machine ``blep``, or a node.

    Args:
        variables: the scenario's own, seen by every program that is started later.
    """

    def __init__(self, folder: Path, name: str, variables: Mapping[str, str]) -> None:
        self.name = name
        self._variables = variables
        self.folder = folder / name
        self.home = self.folder / "home"
        self.state = self.folder / "state"
        self.temporary = self.folder / "tmp"
        for path in (self.home, self.temporary):
            path.mkdir(parents=True)
        self.config_file = self.folder / "config.toml"
        self.settings: dict[str, dict[str, Any]] = {}
        self._write_config()

    def configure(self, section: str, **values: Any) -> None:
        """Set configuration values and write the file; programs read it when they start."""
        self.settings.setdefault(section, {}).update(values)
        self._write_config()

    def _write_config(self) -> None:
        lines = []
        for section, values in self.settings.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        self.config_file.write_text("\n".join(lines) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the caller's environment but where packages come from."""
        kept = {n: v for n, v in os.environ.items() if n.startswith("PIP_")}
        if not (Path(sys.executable).parent / "rbee-keeper").exists():
            kept["PYTHONPATH"] = f"{ROOT / 'services'}:{ROOT / 'cli'}"
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "LANG": "C.UTF-8",
            # Scenarios run side by side: threads of several workers on one core only wait for each other.
            "OMP_NUM_THREADS": "1",
            "RBEE_HOME": str(self.state),
            "RBEE_CONFIG": str(self.config_file),
            "RBEE_API_KEY": API_KEY,
            **self._variables,
        }

    def log_file(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"


def make_folder() -> Path:
    """A fresh folder for one scenario, with a path short enough for sockets below it."""
    return Path(tempfile.mkdtemp(prefix="rbee-f-"))


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def merged(base: Mapping[str, str], extra: Mapping[str, str | None]) -> dict[str, str]:
    """``base`` with ``extra`` laid over it; a value of None removes the variable."""
    result = {**base, **{n: v for n, v in extra.items() if v is not None}}
    return {n: v for n, v in result.items() if not (n in extra and extra[n] is None)}
