"""Where models lie on disk: the layout of the models directory, its limits, and removal from it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.core.errors import DiskFull, ModelNotFound, RbeeError, ServiceUnavailable
from rbee.core.references import ModelRef, Provider

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog, CatalogRow

PARTIAL_SUFFIX = ".partial"
CONVERTED_FOLDER = "ct2"
MIB = 1024 * 1024

_LONGEST_NAME = 200  # bytes; leaves room for the suffixes of a transfer below the usual limit of 255


def target_for(models_dir: Path, ref: ModelRef, filename: str) -> Path:
    """The path of a fetched file: ``<models_dir>/<provider>/<reference>/<base name>``.

    ``filename`` comes from the source and is reduced to its base name; files of one name in several folders
    of a repository are kept apart by a folder named after the hash of theirs. The parent folder is created.

    Raises:
        ModelNotFound: the source's name cannot be a file name.
        ServiceUnavailable: a link makes the path leave the models directory, or it cannot be created.
    """
    folder_name, _, name = filename.replace("\\", "/").rpartition("/")
    if name in ("", ".", "..") or len(name.encode()) > _LONGEST_NAME or not name.isprintable():
        raise ModelNotFound(str(ref), "the source's file name cannot be used")
    folder = models_dir / str(ref.provider) / ref.reference
    if folder_name:
        folder = folder / hashlib.sha256(folder_name.encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceUnavailable(f"Cannot create {folder}: {error.strerror}") from error
    if not is_inside(models_dir, folder / name):
        raise ServiceUnavailable(f"{folder} leads out of the models directory through a link")
    return folder / name


def is_inside(models_dir: Path, path: Path) -> bool:
    """Whether ``path`` lies below the models directory once all links are resolved."""
    return models_dir.resolve() in path.resolve().parents


def require_disk(folder: Path, needed_bytes: int) -> None:
    """Check that the file system of ``folder`` has room for ``needed_bytes`` more.

    Raises:
        DiskFull: it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DiskFull(required=-(-needed_bytes // MIB), available=free // MIB)


def write_error(error: OSError, path: Path, needed_bytes: int) -> RbeeError:
    """What a failed write of ``path`` means to a user: no room for ``needed_bytes``, or another reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return DiskFull(required=max(1, -(-needed_bytes // MIB)), available=free // MIB)
    return ServiceUnavailable(f"Cannot write {path}: {error.strerror}")


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size


def sha256_of_file(path: Path) -> str:
    """The digest in hex. Raises OSError when the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_model(models_dir: Path, catalog: Catalog, ref: ModelRef) -> CatalogRow | None:
    """Remove a model's conversions, its file and its row; None when the catalog has no such row.

    Only what lies inside the models directory is deleted, never the file of a ``file:`` reference, and
    nothing that another row still uses: a file that two references share, conversions of equal content.
    """
    row = catalog.find(ref)
    if row is None:
        return None
    others = [other for other in catalog.list() if other.ref != ref]
    if row.digest and all(other.digest != row.digest for other in others):
        for folder in (models_dir / CONVERTED_FOLDER).glob(f"{row.digest}-*"):
            _remove_folder(folder)
    shared = any(other.local_path == row.local_path for other in others)
    if ref.provider is not Provider.FILE and not shared and is_inside(models_dir, row.local_path):
        _remove_file(models_dir, row.local_path)
    catalog.remove(ref)
    return row


def _remove_folder(folder: Path) -> None:
    # Renamed first, so that a removal cut short leaves nothing that looks like a complete conversion.
    doomed = folder.with_name(f".removed-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _remove_file(models_dir: Path, path: Path) -> None:
    for suffix in ("", PARTIAL_SUFFIX, f"{PARTIAL_SUFFIX}.json"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    folder = path.parent
    while folder != models_dir and models_dir in folder.parents:
        try:
            folder.rmdir()
        except OSError:  # not empty: other files of the repository remain
            return
        folder = folder.parent
