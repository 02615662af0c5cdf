"""Fetching a model: ask its source, share or make the transfer, record the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import ModelRef, Provider
from rbee.models.providers import FetchedFile, ModelProvider, RemoteModel
from rbee.models.providers.local_file import check_gguf
from rbee.models.storage import MIB, sha256_of_file, target_for
from rbee.models.transfer_lock import exclusive_transfer
from rbee.models.transfers import Transfer

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog

_ACTION = "model_download"


def fetch_model(
    ref: ModelRef,
    provider: ModelProvider,
    models_dir: Path,
    open_catalog: Callable[[], Catalog],
    transfer: Transfer,
) -> Path:
    """Make the model of ``ref`` present on this machine and in the catalog; returns where it lies.

    ``open_catalog`` is called when there is something to look up or to record, because opening takes longer
    than finding out that a model does not exist.

    Raises:
        RbeeError: whatever keeps the model from being here; nothing is recorded then.
    """
    transfer.listener.narrate(_ACTION, f"Looking up {ref}")
    remote = transfer.attempt(lambda: provider.resolve(ref))
    if remote.local_path is not None:
        path = _use_in_place(ref, remote, open_catalog, transfer)
        if path is not None:
            return path
    target = target_for(models_dir, ref, remote.filename)
    with exclusive_transfer(models_dir, target, transfer.listener):
        fetched = _already_there(remote, target, open_catalog)
        if fetched is None:
            fetched = _fetch(ref, provider, remote, target, transfer)
        open_catalog().add(ref, fetched.path, fetched.size_bytes, fetched.sha256)
    return fetched.path


def _use_in_place(
    ref: ModelRef, remote: RemoteModel, open_catalog: Callable[[], Catalog], transfer: Transfer
) -> Path | None:
    """Record a file where it lies; None when it is a damaged copy that can be fetched anew instead."""
    path, digest = remote.local_path, None
    assert path is not None  # noqa: S101 - checked by the only caller
    if remote.sha256 is not None:
        transfer.listener.narrate(_ACTION, f"Checking the cached file {path.name}")
        digest = sha256_of_file(path)
        if digest != remote.sha256:
            if remote.download is None:
                raise ModelNotFound(str(ref), f"the cached file {path} is damaged")
            transfer.listener.narrate(_ACTION, f"The cached file {path.name} is damaged and not used")
            return None
    if ref.provider is not Provider.FILE:
        check_gguf(path)
    catalog = open_catalog()
    known = catalog.find(ref)
    if known is None or known.local_path != path or (digest is not None and known.digest != digest):
        catalog.add(ref, path, remote.size_bytes or 0, digest)
    transfer.listener.narrate(_ACTION, f"Using {path.name} where it lies")
    return path


def _already_there(
    remote: RemoteModel, target: Path, open_catalog: Callable[[], Catalog]
) -> FetchedFile | None:
    """The file of an earlier transfer, if it is what the source has now."""
    if not target.is_file():
        return None
    row = open_catalog().at_path(target)
    digest = row.digest if row is not None and row.digest is not None else sha256_of_file(target)
    size = target.stat().st_size
    if remote.sha256 not in (None, digest) or remote.size_bytes not in (None, size):
        return None
    return FetchedFile(target, size, digest)


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
