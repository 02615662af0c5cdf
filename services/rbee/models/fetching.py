"""Fetching a model: ask its source, share or make the transfer, record the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import ModelRef, Provider
from rbee.models.file_notes import FileNote, write_note
from rbee.models.providers import FetchedFile, ModelProvider, RemoteModel
from rbee.models.providers.local_file import check_gguf
from rbee.models.split_files import combined_digest
from rbee.models.storage import MIB, sha256_of_file, target_for
from rbee.models.transfer_lock import exclusive_transfer
from rbee.models.transfers import Transfer

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog, CatalogRow

logger = logging.getLogger(__name__)

_ACTION = "model_download"


def fetch_model(
    ref: ModelRef,
    provider: ModelProvider,
    models_dir: Path,
    open_catalog: Callable[[], Catalog],
    transfer: Transfer,
) -> Path:
    """Make the model of ``ref`` present on this machine and in the catalog; returns where it lies.

    ``open_catalog`` is called when the model is known to exist, because opening takes longer than finding out
    that it does not.

    Raises:
        RbeeError: whatever keeps the model from being here; nothing is recorded then.
    """
    transfer.listener.narrate(_ACTION, f"Looking up {ref}")
    remote = transfer.attempt(lambda: provider.resolve(ref))
    if remote.local_path is not None:
        path = _use_in_place(ref, remote, open_catalog, transfer)
        if path is not None:
            return path
    targets = [target_for(models_dir, ref, part.filename) for part in remote.files]
    with exclusive_transfer(models_dir, targets, remote.size_bytes, transfer.listener):
        # Before the files, or a catalog that is new would take them for left from an earlier one.
        catalog = open_catalog()
        files = _obtain(ref, provider, remote, targets, transfer)
        _note(_record(catalog, ref, files, remote.revision))
    return targets[0]


def _use_in_place(
    ref: ModelRef, remote: RemoteModel, open_catalog: Callable[[], Catalog], transfer: Transfer
) -> Path | None:
    """Record files where they lie; None when one is a damaged copy that can be fetched anew instead."""
    path = remote.local_path
    assert path is not None  # noqa: S101 - checked by the only caller
    digests = []
    for part in remote.files:
        if part.sha256 is not None and part.local_path is not None:
            transfer.listener.narrate(_ACTION, f"Checking the cached file {part.local_path.name}")
            digests.append(sha256_of_file(part.local_path))
            if digests[-1] != part.sha256:
                if part.download is None:
                    raise ModelNotFound(str(ref), f"the cached file {part.local_path} is damaged")
                transfer.listener.narrate(
                    _ACTION, f"The cached file {part.local_path.name} is damaged and not used"
                )
                return None
        if ref.provider is not Provider.FILE and part.local_path is not None:
            check_gguf(part.local_path)
    digest = combined_digest(digests) if len(digests) == len(remote.files) else None
    catalog = open_catalog()
    known = catalog.find(ref)
    if known is None or known.local_path != path or (digest is not None and known.digest != digest):
        part_digests = digests if remote.parts and digest is not None else ()
        catalog.add(
            ref, path, remote.size_bytes or 0, digest, revision=remote.revision, part_digests=part_digests
        )
    transfer.listener.narrate(_ACTION, f"Using {path.name} where it lies")
    return path


def _obtain(
    ref: ModelRef,
    provider: ModelProvider,
    remote: RemoteModel,
    targets: Sequence[Path],
    transfer: Transfer,
) -> list[FetchedFile]:
    """All files of the model, one after the other; those that are here already cost no transfer."""
    files: list[FetchedFile] = []
    for part, target in zip(remote.files, targets, strict=True):
        fetched = _already_there(part, target, transfer)
        if fetched is None and remote.parts:
            with transfer.of_part(sum(file.size_bytes for file in files), remote.size_bytes):
                fetched = _fetch(ref, provider, part, target, transfer)
        elif fetched is None:
            fetched = _fetch(ref, provider, part, target, transfer)
        files.append(fetched)
    return files


def _already_there(remote: RemoteModel, target: Path, transfer: Transfer) -> FetchedFile | None:
    """The file of an earlier transfer, if it is what the source has now.

    It is read whatever the catalog says of it, so that a file that was damaged since is fetched again.
    """
    if not target.is_file():
        return None
    size = target.stat().st_size
    if remote.size_bytes not in (None, size):
        return None
    transfer.listener.narrate(_ACTION, f"Checking the file {target.name} that is here already")
    digest = sha256_of_file(target)
    return FetchedFile(target, size, digest) if remote.sha256 in (None, digest) else None


def _fetch(
    ref: ModelRef, provider: ModelProvider, remote: RemoteModel, target: Path, transfer: Transfer
) -> FetchedFile:
    size = f" ({remote.size_bytes / MIB:.1f} MB)" if remote.size_bytes is not None else ""
    transfer.listener.narrate(_ACTION, f"Downloading {target.name}{size}")
    fetched = provider.fetch(ref, remote, target, transfer)
    try:
        check_gguf(fetched.path)
    except ModelIncompatible:
        fetched.path.unlink()
        raise
    transfer.listener.narrate(_ACTION, f"Downloaded {target.name} ({fetched.size_bytes / MIB:.1f} MB)")
    return fetched


def _record(
    catalog: Catalog, ref: ModelRef, files: Sequence[FetchedFile], revision: str | None
) -> CatalogRow:
    digests = [file.sha256 for file in files]
    return catalog.add(
        ref,
        files[0].path,
        sum(file.size_bytes for file in files),
        combined_digest(digests),
        revision=revision,
        part_digests=digests if len(digests) > 1 else (),
    )


def _note(row: CatalogRow) -> None:
    """Note beside the file what a rebuilt catalog would need; the model works without the note, too."""
    note = FileNote(
        references=(str(row.ref),),
        size_bytes=row.size_bytes,
        digest=row.digest,
        part_digests=row.part_digests,
        revision=row.revision,
        fetched_at_unix=row.downloaded_at_unix,
    )
    try:
        write_note(row.local_path, note)
    except OSError as error:
        logger.warning("note not written path=%s reason=%s", row.local_path, error.strerror)
