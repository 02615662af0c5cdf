"""Installs launchers, a default configuration and the model folder, for one user or for the machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rbee_keeper.failures import KeeperFailure

PROGRAMS = ("rbee-keeper", "rbee", "queen-rbee", "rbee-hive", "llm-worker-rbee")
Environ = Mapping[str, str]


@dataclass(frozen=True)
class Targets:
    """Where an installation goes, as the installed programs see it (without ``DESTDIR``)."""

    programs: Path
    config: Path
    models: Path
    catalog: Path
    is_system: bool


def user_targets(environ: Environ) -> Targets:
    """Below the user's home; the XDG variables move configuration and models."""
    home = Path(environ.get("HOME") or "~").expanduser()
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    state = Path(environ.get("RBEE_HOME") or home / ".rbee").expanduser().absolute()
    return Targets(
        programs=home / ".local" / "bin",
        config=config / "rbee" / "config.toml",
        models=data / "rbee" / "models",
        catalog=state / "models.db",
        is_system=False,
    )


def system_targets(environ: Environ, *, is_root: bool) -> Targets:
    """For all users.

    Raises:
        KeeperFailure: neither root nor ``DESTDIR``.
    """
    if not is_root and not environ.get("DESTDIR"):
        raise KeeperFailure(
            "install --system needs root",
            suggestion="Run it with sudo: sudo rbee-keeper install --system",
            code="INVALID_REQUEST",
        )
    state = Path("/var/lib/rbee")
    return Targets(
        programs=Path("/usr/local/bin"),
        config=Path("/etc/rbee/config.toml"),
        models=state / "models",
        catalog=state / "models.db",
        is_system=True,
    )


def install_programs(targets: Targets, environ: Environ, folder: Path) -> list[str]:
    """Install everything; returns the lines to print. Doing it again changes nothing but the launchers.

    Args:
        folder: the programs of the Python environment they start.

    Raises:
        KeeperFailure: a program is missing in this environment, or a folder cannot be written.
    """
    sources = _sources(folder)
    root = environ.get("DESTDIR") or ""
    try:
        programs = _below(root, targets.programs)
        programs.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            _write_launcher(programs / name, source)
        config, models = _below(root, targets.config), _below(root, targets.models)
        is_new = _write_config(config, targets)
        models.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KeeperFailure(
            f"Cannot write {error.filename}: {error.strerror}", code="INTERNAL_ERROR"
        ) from None
    return [
        f"Installed {', '.join(PROGRAMS)} in {programs}",
        f"{'Configuration' if is_new else 'Configuration kept'}: {config}",
        f"Models: {models}",
        *_path_hint(targets.programs, environ),
        "Next steps:",
        '  rbee-keeper infer --prompt "Write a short story about a bee."',
        "  rbee-keeper queen start",
        "  rbee-keeper setup add-node --help",
    ]


def _sources(folder: Path) -> dict[str, Path]:
    missing = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        raise KeeperFailure(
            f"{', '.join(missing)} not found in {folder}",
            suggestion="Install rbee into this Python environment first: pip install rbee",
            code="INTERNAL_ERROR",
        )
    return {name: folder / name for name in PROGRAMS}


def _below(root: str, path: Path) -> Path:
    """``path`` below ``DESTDIR``, which is put before it as text."""
    return Path(root + str(path)) if root else path


def _write_launcher(target: Path, source: Path) -> None:
    """A shell script that runs ``source``; moved into place, so that nobody ever runs half of it."""
    if target.exists() and target.samefile(source):
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fresh.write_text(f'#!/bin/sh\nexec {shlex.quote(str(source))} "$@"\n')
        fresh.chmod(0o755)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _write_config(path: Path, targets: Targets) -> bool:
    """The default configuration, only where there is none; whether it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(default_config(targets))
    except FileExistsError:
        return False
    path.chmod(0o644)
    return True


def default_config(targets: Targets) -> str:
    """A configuration that says where models and catalog are, and names the keys most people change."""
    return f"""\
# rbee configuration. Every key is optional; the command line and RBEE_* variables win over this file.

[paths]
models_dir = {_toml_text(targets.models)}
catalog_db = {_toml_text(targets.catalog)}

# [auth]
# api_key_file = "{targets.config.parent}/api.key"   # one line, 16 to 512 characters, mode 0600

# [queen]
# url = "http://127.0.0.1:8080"

# [worker]
# compute_type = "auto"
# context_tokens = 2048
"""


def _toml_text(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _path_hint(folder: Path, environ: Environ) -> list[str]:
    if str(folder) in environ.get("PATH", "").split(os.pathsep):
        return []
    return [
        f"{folder} is not in your PATH; add it:",
        f'  export PATH="{folder}:$PATH"',
    ]
