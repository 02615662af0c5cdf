"""Finds finished conversions: what a warm start needs to know, without the libraries that convert."""

from __future__ import annotations

import json
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


def _description(folder: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None when it is not complete or of another recipe."""
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if description["recipe"] != RECIPE:
            return None
        files = dict(description["files"])
        complete = all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return description if complete else None
