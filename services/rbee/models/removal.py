"""Taking a model off this node: its files, its conversions and its row in the catalog."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.core.references import ModelRef, Provider
from rbee.models.file_notes import forget_reference
from rbee.models.split_files import parts_of
from rbee.models.storage import CONVERTED_FOLDER, NOTE_SUFFIX, PARTIAL_SUFFIX, is_inside, size_on_disk

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog, CatalogRow


def remove_model(models_dir: Path, catalog: Catalog, ref: ModelRef) -> CatalogRow | None:
    """Remove a model's conversions, its files and its row; None when the catalog has no such row.

    Only what ``removable`` names is deleted.
    """
    row = catalog.find(ref)
    if row is None:
        return None
    others = [other for other in catalog.list() if other.ref != ref]
    folders, files = removable(models_dir, row, others)
    for folder in folders:
        remove_folder(folder)
    if files:
        _remove_files(models_dir, row.local_path)
    elif is_inside(models_dir, row.local_path):
        forget_reference(row.local_path, ref)
    catalog.remove(ref)
    return row


def removable(models_dir: Path, row: CatalogRow, others: list[CatalogRow]) -> tuple[list[Path], list[Path]]:
    """The conversions and the files that go with a row when ``others`` are the rows that stay.

    Only what lies inside the models directory is named, never the file of a ``file:`` reference, and nothing
    that another row still uses: a file that two references share, conversions of equal content.
    """
    folders: list[Path] = []
    if row.digest and all(other.digest != row.digest for other in others):
        folders = sorted((models_dir / CONVERTED_FOLDER).glob(f"{row.digest}-*"))
    is_shared = any(other.local_path == row.local_path for other in others)
    is_ours = row.ref.provider is not Provider.FILE and is_inside(models_dir, row.local_path)
    return folders, list(parts_of(row.local_path)) if is_ours and not is_shared else []


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a removal cut short leaves nothing that looks like a complete conversion."""
    doomed = folder.with_name(f"{REMOVED_PREFIX}{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


REMOVED_PREFIX = ".removed-"


def bytes_of(path: Path) -> int:
    """Bytes of a file or folder; 0 for one that is gone."""
    try:
        return path.stat().st_size if path.is_file() else size_on_disk(path)
    except OSError:
        return 0


def remove_empty_folders(models_dir: Path, folder: Path) -> None:
    """Remove ``folder`` and those above it, up to the models directory, as far as they are empty."""
    while folder != models_dir and models_dir in folder.parents:
        try:
            folder.rmdir()
        except OSError:  # not empty: other files of the repository remain
            return
        folder = folder.parent


def _remove_files(models_dir: Path, path: Path) -> None:
    for part in parts_of(path):
        for suffix in ("", PARTIAL_SUFFIX, f"{PARTIAL_SUFFIX}.json", NOTE_SUFFIX):
            part.with_name(part.name + suffix).unlink(missing_ok=True)
    remove_empty_folders(models_dir, path.parent)
