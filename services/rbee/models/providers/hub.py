"""Models of a Hugging Face hub or a mirror of it, through huggingface-hub and its environment (HF_*)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    scan_cache_dir,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import build_hf_headers

from rbee.core.errors import DownloadFailed, ModelAccessDenied, ModelNotFound, RbeeError
from rbee.core.references import ModelRef
from rbee.models.download import CONNECT_TIMEOUT_S, RemoteFile, UntrustedServer, download
from rbee.models.network_errors import TRANSIENT_STATUSES, is_untrusted, network_reason, retry_after_s
from rbee.models.providers import FetchedFile, RemoteModel
from rbee.models.providers.gguf_choice import NoSuchGguf, choose_gguf, named_parts
from rbee.models.split_files import combined_digest, split_name
from rbee.models.transfers import Transfer, TransferInterrupted

_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubProvider:
    """``hf:ORG/REPO``, ``hf:ORG/REPO:QUANT`` and ``hf:ORG/REPO/FILE.gguf``.

    huggingface-hub reads its environment when it is imported; what is given here wins over it, and
    ``token=False`` means none. A file in the user's cache is used where it lies and never copied.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        cache_dir: Path | None = None,
        token: str | Literal[False] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._cache_dir = cache_dir
        self._token = token

    def resolve(self, ref: ModelRef) -> RemoteModel:
        if constants.HF_HUB_OFFLINE:
            cached = self._from_cache(ref)
            if cached is None:
                raise ModelNotFound(
                    str(ref),
                    "the hub client is offline and the file is not in its cache",
                    suggestion="Unset HF_HUB_OFFLINE, or download the model where there is a network",
                )
            return cached
        try:
            with _hub_errors(ref):
                is_single = ref.names_file and split_name(ref.variant) is None
                found = self._ask_file(ref) if is_single else self._ask_repository(ref)
        except TransferInterrupted:
            cached = self._from_cache(ref)
            if cached is None:
                raise
            return cached
        return self._prefer_cache(ref, found)

    def fetch(self, ref: ModelRef, remote: RemoteModel, target: Path, transfer: Transfer) -> FetchedFile:
        assert remote.download is not None  # noqa: S101 - resolve sets it for everything that is not local
        try:
            done = download(
                remote.download, target, transfer, lambda status, headers: _refusal(ref, status, headers)
            )
        except UntrustedServer as error:
            raise DownloadFailed(1, str(error)) from error
        return FetchedFile(done.path, done.size_bytes, done.sha256)

    def _ask_file(self, ref: ModelRef) -> RemoteModel:
        url = hf_hub_url(ref.reference, ref.variant, endpoint=self._endpoint)
        found = get_hf_file_metadata(url, token=self._token, timeout=CONNECT_TIMEOUT_S)
        sha256 = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None
        return self._remote(ref, ref.variant, found.size, sha256, found.commit_hash)

    def _ask_repository(self, ref: ModelRef) -> RemoteModel:
        info = HfApi(endpoint=self._endpoint, token=self._token).model_info(
            ref.reference, files_metadata=True, timeout=CONNECT_TIMEOUT_S
        )
        files = {file.rfilename: file for file in info.siblings or []}
        try:
            names = _files_of(ref, files)
        except NoSuchGguf as error:
            raise ModelNotFound(str(ref), str(error)) from error
        parts = []
        for file in (files[name] for name in names):
            sha256 = file.lfs.sha256 if file.lfs else None
            parts.append(self._remote(ref, file.rfilename, file.size, sha256, info.sha))
        return _joined(parts)

    def _remote(
        self, ref: ModelRef, filename: str, size: int | None, sha256: str | None, revision: str | None
    ) -> RemoteModel:
        # The URL names the commit, so that a file that changes between two attempts stays the same file.
        url = hf_hub_url(ref.reference, filename, revision=revision, endpoint=self._endpoint)
        authorization = build_hf_headers(token=self._token).get("authorization")
        download = RemoteFile(url, size, sha256, authorization)
        return RemoteModel(filename, size, sha256, revision, download=download)

    def _prefer_cache(self, ref: ModelRef, found: RemoteModel) -> RemoteModel:
        """What the cache has instead, when it has all files of the model as the hub has them now."""
        cached = [self._cached(ref, part) for part in found.parts or (found,)]
        return _joined([part for part in cached if part]) if all(cached) else found

    def _cached(self, ref: ModelRef, found: RemoteModel) -> RemoteModel | None:
        for revision in (found.revision, constants.DEFAULT_REVISION):
            path = try_to_load_from_cache(
                ref.reference, found.filename, cache_dir=self._cache_dir, revision=revision
            )
            if not isinstance(path, str):
                continue
            blob = Path(path).resolve()
            is_same = blob.name == found.sha256 if found.sha256 else revision == found.revision
            if is_same and found.size_bytes in (None, blob.stat().st_size):
                return _in_cache(Path(path), found.filename, found.revision, found)
        return None

    def _from_cache(self, ref: ModelRef) -> RemoteModel | None:
        """What the cache has of the default revision, for when the hub cannot be asked."""
        try:
            cache = scan_cache_dir(self._cache_dir)
        except (CacheNotFound, ValueError):
            return None
        for repo in cache.repos:
            if repo.repo_id != ref.reference or repo.repo_type != "model":
                continue
            for revision in repo.revisions:
                if constants.DEFAULT_REVISION not in revision.refs and len(repo.revisions) > 1:
                    continue
                root = revision.snapshot_path
                files = {str(file.file_path.relative_to(root)): file.file_path for file in revision.files}
                try:
                    names = _files_of(ref, files)
                except NoSuchGguf:
                    continue
                return _joined([_in_cache(files[name], name, revision.commit_hash) for name in names])
        return None


def _files_of(ref: ModelRef, filenames: Collection[str]) -> list[str]:
    """The files of a repository that a reference means: one, or all parts of a split model."""
    return named_parts(filenames, ref.variant if ref.names_file else choose_gguf(filenames, ref.variant))


def _joined(parts: Sequence[RemoteModel]) -> RemoteModel:
    """The model of these files; where it lies if all of them are there in one folder."""
    first = parts[0]
    if len(parts) == 1:
        return first
    sizes = [part.size_bytes for part in parts if part.size_bytes is not None]
    digests = [part.sha256 for part in parts if part.sha256 is not None]
    paths = [part.local_path for part in parts if part.local_path is not None]
    is_here = len(paths) == len(parts) and len({path.parent for path in paths}) == 1
    return RemoteModel(
        filename=first.filename,
        size_bytes=sum(sizes) if len(sizes) == len(parts) else None,
        sha256=combined_digest(digests) if len(digests) == len(parts) else None,
        revision=first.revision,
        local_path=first.local_path if is_here else None,
        parts=tuple(parts),
    )


def _in_cache(
    path: Path, filename: str, revision: str | None, found: RemoteModel | None = None
) -> RemoteModel:
    blob = path.resolve()
    return RemoteModel(
        filename=filename,
        size_bytes=blob.stat().st_size,
        sha256=blob.name if _SHA256.fullmatch(blob.name) else None,
        revision=revision,
        local_path=path,
        download=found.download if found else None,
    )


@contextmanager
def _hub_errors(ref: ModelRef) -> Iterator[None]:
    """Exceptions of huggingface-hub and of the HTTP library it happens to use, as ours."""
    try:
        yield
    except HFValidationError as error:
        raise ModelNotFound(str(ref), "a hub has no repository of such a name") from error
    except HfHubHTTPError as error:
        status, headers = error.response.status_code, error.response.headers
        named = _refusal(ref, status, headers)
        if named is not None:
            raise named from error
        if status in TRANSIENT_STATUSES:
            raise TransferInterrupted(f"HTTP {status}", retry_after_s=retry_after_s(headers)) from error
        raise DownloadFailed(1, f"HTTP {status}") from error
    except (HTTPError, OSError) as error:
        if is_untrusted(error):
            raise DownloadFailed(1, "The server's certificate could not be verified") from error
        raise TransferInterrupted(network_reason(error)) from error


def _refusal(ref: ModelRef, status: int, headers: Mapping[str, str]) -> RbeeError | None:
    """What the hub refuses; X-Error-Code says more than the status.

    To somebody without a token the hub answers 401 for missing and for private repositories alike.
    """
    name, code = str(ref), headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return ModelAccessDenied(name, "the repository is gated")
    if status == 401 and "Invalid credentials" in headers.get("X-Error-Message", ""):
        return ModelAccessDenied(name, "the hub refuses the token", suggestion="Renew HF_TOKEN")
    if status == 401 and code == "RepoNotFound":
        return ModelAccessDenied(
            name,
            "the hub shows no repository of this name without a token; it is private or missing",
            suggestion="Check the model reference; for a private repository set HF_TOKEN",
        )
    if status in (401, 403):
        return ModelAccessDenied(name, suggestion="Set HF_TOKEN to a token that may read this repository")
    if status in (404, 410):
        reason = {
            "RepoNotFound": "the hub has no such repository",
            "EntryNotFound": "the repository has no such file",
            "RevisionNotFound": "the repository has no such revision",
        }.get(code)
        return ModelNotFound(name, reason)
    return None
