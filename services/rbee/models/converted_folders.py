"""Finds finished conversions: what a warm start needs to know, without the libraries that convert."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee.models.storage import CONVERTED_FOLDER

# Raised whenever the converted files change for the same input; older folders are then converted again.
RECIPE = 2
DESCRIPTION = "rbee.json"


def converted_folder(models_dir: Path, sha256: str, compute_type: str) -> Path | None:
    """The folder that ``convert`` would return, if it is complete and of this recipe."""
    folder = models_dir / CONVERTED_FOLDER / f"{sha256}-{compute_type}"
    return None if _description(folder) is None else folder


def parameters_of_converted(models_dir: Path, sha256: str) -> int | None:
    """How many parameters the model of that digest has, when a conversion of any type can tell."""
    for folder in (models_dir / CONVERTED_FOLDER).glob(f"{sha256}-*"):
        parameters = (_description(folder) or {}).get("parameters")
        if isinstance(parameters, int):
            return parameters
    return None


@dataclass(frozen=True)
class Conversion:
    """A converted folder on disk; usable is one that ``converted_folder`` gives: complete, of this recipe."""

    path: Path
    digest: str
    compute_type: str
    size_bytes: int
    source_size_bytes: int | None
    is_complete: bool
    is_current: bool

    @property
    def is_usable(self) -> bool:
        return self.is_complete and self.is_current


def conversions(models_dir: Path, sha256: str = "") -> list[Conversion]:
    """Every converted folder, or those of one digest, whatever state they are in."""
    found = []
    for folder in sorted((models_dir / CONVERTED_FOLDER).glob(f"{sha256 or '*'}-*")):
        digest, _, compute_type = folder.name.partition("-")
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        description = _read(folder)
        found.append(
            Conversion(
                path=folder,
                digest=digest,
                compute_type=compute_type,
                size_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
                source_size_bytes=(description or {}).get("source_size_bytes"),
                is_complete=description is not None and _is_complete(folder, description),
                is_current=description is not None and description.get("recipe") == RECIPE,
            )
        )
    return found


def _description(folder: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None when it is not complete or of another recipe."""
    description = _read(folder)
    if description is None or description.get("recipe") != RECIPE:
        return None
    return description if _is_complete(folder, description) else None


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) else None


def _is_complete(folder: Path, description: dict[str, Any]) -> bool:
    """Whether all files are there in the size that was noted when they were written."""
    try:
        files = dict(description["files"])
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False
