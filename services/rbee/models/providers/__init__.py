"""Where models come from: the port that every source implements, and the adapter for a reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rbee.core.references import ModelRef, Provider

if TYPE_CHECKING:
    from rbee.models.download import RemoteFile
    from rbee.models.transfers import Transfer


@dataclass(frozen=True)
class RemoteModel:
    """What a source has under a reference; size and digest are the model's, where it names them.

    Of a split model ``filename`` and ``local_path`` are the first part's, size and digest those of all parts.
    """

    filename: str
    size_bytes: int | None = None
    sha256: str | None = None
    revision: str | None = None
    local_path: Path | None = None
    """Set when the file is on this machine already and is to be used where it lies."""
    download: RemoteFile | None = None
    """What would be transferred: the file itself or an archive that holds it; None with ``parts``."""
    parts: tuple[RemoteModel, ...] = ()
    """All files of a split model in order; none of a whole one."""

    @property
    def files(self) -> tuple[RemoteModel, ...]:
        """The files one by one: the parts, or the model itself."""
        return self.parts or (self,)


@dataclass(frozen=True)
class FetchedFile:
    path: Path
    size_bytes: int
    sha256: str


class ModelProvider(Protocol):
    """A source of models. Neither method retries by itself: ``Transfer`` counts the attempts of both.

    Raises (both): ModelNotFound, ModelAccessDenied, and ``TransferInterrupted`` for what may pass; ``fetch``
    hands the latter to its transfer and ends in DownloadFailed or DownloadTimeout.
    """

    def resolve(self, ref: ModelRef) -> RemoteModel:
        """Ask the source what ``ref`` means."""

    def fetch(self, ref: ModelRef, remote: RemoteModel, target: Path, transfer: Transfer) -> FetchedFile:
        """Bring a file to ``target``: the resolved model, or one of its parts.

        Called only where ``remote.local_path`` is None.
        """


def provider_for(ref: ModelRef) -> ModelProvider:
    """The adapter for a reference. Imports only what that one needs: the hub's client alone takes 0.4 s."""
    if ref.provider is Provider.HF:
        from rbee.models.providers.hub import HubProvider

        return HubProvider()
    if ref.provider is Provider.PYPI:
        from rbee.models.providers.package_index import PackageIndexProvider

        return PackageIndexProvider()
    from rbee.models.providers.local_file import LocalFileProvider

    return LocalFileProvider()
