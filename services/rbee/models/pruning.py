"""What may go from a models directory: left-overs of dead work, needless conversions, unused models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.core.references import GGUF_SUFFIX, ModelRef, Provider
from rbee.models.conversion_lock import partial_folders, unless_converted
from rbee.models.converted_folders import Conversion, conversions
from rbee.models.partial_file import PARTIAL_NOTE_SUFFIX
from rbee.models.removal import (
    REMOVED_PREFIX,
    bytes_of,
    removable,
    remove_empty_folders,
    remove_folder,
    remove_model,
)
from rbee.models.split_files import split_name
from rbee.models.storage import CONVERTED_FOLDER, PARTIAL_SUFFIX, WHEEL_PREFIX, WHEEL_SUFFIX, is_inside
from rbee.models.transfer_lock import unless_transferred

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog, CatalogRow


class Kind(StrEnum):
    """What was removed."""

    DOWNLOAD = "partial download"
    CONVERSION = "conversion"
    MODEL = "model"


@dataclass(frozen=True)
class Pruned:
    """One thing that was removed, or would be, and why."""

    kind: Kind
    path: Path
    size_bytes: int
    reason: str
    model_ref: str | None = None


@dataclass(frozen=True)
class InUse:
    """What must stay: models that workers have or that are being worked on, folders that workers loaded."""

    refs: frozenset[ModelRef] = frozenset()
    folders: frozenset[Path] = frozenset()


class Pruning:
    """One pass over a models directory.

    Args:
        in_use: asked again before anything is removed.
        dry_run: find out and remove nothing.
    """

    def __init__(
        self, models_dir: Path, catalog: Catalog, in_use: Callable[[], InUse], *, dry_run: bool = False
    ) -> None:
        self._models_dir = models_dir
        self._converted = models_dir / CONVERTED_FOLDER
        self._catalog = catalog
        self._in_use = in_use
        self._dry_run = dry_run
        self._gone: set[Path] = set()
        """Conversions that went with their models, or would have."""

    def run(self, unused_since_unix: float | None = None) -> list[Pruned]:
        """Remove what may go, and the models not used since that time where one is given.

        What another process works on is left alone: its locks tell.
        """
        staying = list(self._catalog.list())
        pruned = [] if unused_since_unix is None else self._models(staying, unused_since_unix)
        pruned += self._downloads()
        pruned += self._unfinished_conversions()
        pruned += self._conversions(staying)
        return pruned

    def _models(self, staying: list[CatalogRow], unused_since_unix: float) -> list[Pruned]:
        pruned = []
        for row in list(staying):
            if max(row.last_used_unix or 0, row.downloaded_at_unix) >= unused_since_unix:
                continue
            others = [other for other in staying if other.ref != row.ref]
            folders, files = removable(self._models_dir, row, others)
            freed = sum(bytes_of(path) for path in [*folders, *files])
            if self._remove_unused(row, folders):
                staying.remove(row)
                self._gone.update(folders)
                pruned.append(Pruned(Kind.MODEL, row.local_path, freed, "not used for long", str(row.ref)))
        return pruned

    def _remove_unused(self, row: CatalogRow, folders: list[Path]) -> bool:
        """Remove a model with its conversions unless somebody needs them."""
        used = self._in_use()
        if row.ref in used.refs or used.folders.intersection(folders):
            return False
        with ExitStack() as locks:
            held = [unless_converted(self._converted, folder.name) for folder in folders]
            if is_inside(self._models_dir, row.local_path):
                held.append(unless_transferred(self._models_dir, row.local_path))
            if not all(locks.enter_context(lock) for lock in held):
                return False
            if not self._dry_run:
                remove_model(self._models_dir, self._catalog, row.ref)
        return True

    def _downloads(self) -> list[Pruned]:
        pruned = []
        for path, target in self._partial_downloads():
            with unless_transferred(self._models_dir, target) as is_free:
                if not is_free:
                    continue
                pruned.append(Pruned(Kind.DOWNLOAD, path, bytes_of(path), "its download does not go on"))
                self._delete(path)
                if not self._dry_run:
                    remove_empty_folders(self._models_dir, path.parent)
        return pruned

    def _partial_downloads(self) -> Iterator[tuple[Path, Path]]:
        """Files and folders of transfers, each with the first file of the model, by which that is locked."""
        for provider in (Provider.HF, Provider.PYPI):
            for path in sorted((self._models_dir / provider).rglob("*")):
                name = _model_name(path)
                if name is not None and is_inside(self._models_dir, path):
                    split = split_name(name)
                    yield path, path.with_name(name if split is None else split.part(1))

    def _unfinished_conversions(self) -> list[Pruned]:
        pruned = []
        for path, key in partial_folders(self._converted):
            with unless_converted(self._converted, key) as is_free:
                if is_free:
                    pruned.append(Pruned(Kind.CONVERSION, path, bytes_of(path), "it was not finished"))
                    self._delete(path)
        for path in sorted(self._converted.glob(f"{REMOVED_PREFIX}*")):
            pruned.append(Pruned(Kind.CONVERSION, path, bytes_of(path), "its removal was not finished"))
            self._delete(path)
        return pruned

    def _conversions(self, staying: list[CatalogRow]) -> list[Pruned]:
        pruned = []
        for found in conversions(self._models_dir):
            reason = _why_not_needed(found, staying)
            if reason is None or found.path in self._gone:
                continue
            used = self._in_use()
            used_digests = {row.digest for row in staying if row.ref in used.refs}
            if found.path in used.folders or found.digest in used_digests:
                continue
            with unless_converted(self._converted, found.path.name) as is_free:
                if is_free:
                    pruned.append(Pruned(Kind.CONVERSION, found.path, found.size_bytes, reason))
                    if not self._dry_run:
                        remove_folder(found.path)
        return pruned

    def _delete(self, path: Path) -> None:
        if self._dry_run:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _model_name(path: Path) -> str | None:
    """The model file that a left-over of a transfer was to become a part of; None for anything else."""
    name = path.name
    if name.startswith(WHEEL_PREFIX):  # pip's folder: the model's name and a random ending
        name = name.removeprefix(WHEEL_PREFIX).rpartition("-")[0]
    elif name.endswith((PARTIAL_SUFFIX, PARTIAL_SUFFIX + PARTIAL_NOTE_SUFFIX, WHEEL_SUFFIX)):
        name = name.removesuffix(PARTIAL_NOTE_SUFFIX).removesuffix(PARTIAL_SUFFIX).removesuffix(WHEEL_SUFFIX)
    else:
        return None
    return name if name.endswith(GGUF_SUFFIX) else None


def _why_not_needed(found: Conversion, staying: Collection[CatalogRow]) -> str | None:
    """Why a conversion may go; None for one that a model of the catalog needs, or may need."""
    if not found.is_complete:
        return "it is incomplete"
    if not found.is_current:
        return "it was made by an older version"
    if any(row.digest == found.digest for row in staying):
        return None
    if any(row.digest is None and row.size_bytes == found.source_size_bytes for row in staying):
        return None
    return "its model is no longer here"
