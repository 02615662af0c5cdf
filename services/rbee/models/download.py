"""Downloading one file over HTTP: continued where it stopped, watched for stalls, checked by digest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

import rbee
from rbee.core.errors import ChecksumMismatch, DownloadFailed, RbeeError
from rbee.models.network_errors import TRANSIENT_STATUSES, is_untrusted, network_reason, retry_after_s
from rbee.models.partial_file import PartialFile
from rbee.models.storage import MIB, require_disk, write_error
from rbee.models.transfers import Transfer, TransferInterrupted

CONNECT_TIMEOUT_S = 10.0
_CHUNK = MIB
_TLS_RECORD = 16 * 1024
_WRITE_INTERVAL_S = 0.05
_DISK_CHECK_EVERY = 64 * MIB
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Refusal = Callable[[int, Mapping[str, str]], RbeeError | None]
"""What an HTTP status and headers of the source mean; None where they have no special meaning."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, with what its source says of it beforehand."""

    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    authorization: str | None = field(default=None, repr=False)
    """Value of the Authorization header; sent to the host of ``url`` only, not to where that redirects."""


@dataclass(frozen=True)
class Downloaded:
    path: Path
    size_bytes: int
    sha256: str


class UntrustedServer(Exception):
    """The server's certificate is not accepted; another attempt would meet the same."""


def download(remote: RemoteFile, target: Path, transfer: Transfer, refusal: Refusal) -> Downloaded:
    """Fetch ``remote`` to ``target``, continuing ``<target>.partial`` from its last byte.

    A file whose digest differs from the stated one is deleted and fetched once more.

    Raises:
        DownloadFailed, DownloadTimeout: the transfer's attempts are used up, or the server answers something
            that another attempt would not change.
        ChecksumMismatch: the second file is wrong too.
        DiskFull: there is no room, before or during the transfer.
        RbeeError: whatever ``refusal`` makes of an answer.
    """
    try:
        return _download_checked(remote, target, transfer, refusal)
    except ChecksumMismatch:
        transfer.listener.narrate("retry", "Error: The file's digest differs from the source's")
        transfer.listener.narrate("retry", "Downloading the whole file once more")
        return _download_checked(remote, target, transfer, refusal)


def _download_checked(remote: RemoteFile, target: Path, transfer: Transfer, refusal: Refusal) -> Downloaded:
    try:
        with PartialFile(target, remote.size_bytes, remote.sha256) as partial, _session(remote) as session:
            if partial.offset:
                done_mb = partial.offset / MIB
                transfer.listener.narrate("model_download", f"Continuing {target.name} at {done_mb:.1f} MB")
            transfer.listener.begin(partial.offset)
            transfer.attempt(lambda: _continue(session, remote, partial, transfer, refusal))
            digest = partial.sha256()
            if remote.sha256 not in (None, digest):
                partial.discard()
                raise ChecksumMismatch(str(remote.sha256), digest)
            partial.complete()
            return Downloaded(target, partial.offset, digest)
    except OSError as error:
        raise write_error(error, target, 0) from error


def _continue(
    session: requests.Session,
    remote: RemoteFile,
    partial: PartialFile,
    transfer: Transfer,
    refusal: Refusal,
) -> None:
    if remote.size_bytes is not None and partial.offset == remote.size_bytes:
        return
    if remote.size_bytes is not None:
        require_disk(partial.path.parent, remote.size_bytes - partial.offset)
    timeout = (min(CONNECT_TIMEOUT_S, transfer.policy.stall_timeout_s), transfer.policy.stall_timeout_s)
    with (
        _network_errors(transfer.policy.stall_timeout_s),
        session.get(
            remote.url, headers=_range_headers(remote, partial), stream=True, timeout=timeout
        ) as response,
    ):
        _check_status(response, remote, partial, refusal)
        total = _total(response, remote, partial)
        if total is not None:
            require_disk(partial.path.parent, total - partial.offset)
        partial.describe(total, _validator(response))
        _receive(response, partial, total, transfer)
    if total is not None and partial.offset < total:
        raise TransferInterrupted(f"Connection closed after {partial.offset} of {total} bytes")
    if total is not None and partial.offset > total:
        partial.restart()
        raise TransferInterrupted(f"The server sent more than the {total} bytes of the file")


def _receive(
    response: requests.Response, partial: PartialFile, total: int | None, transfer: Transfer
) -> None:
    arrived = bytearray()
    written_at = time.monotonic()
    try:
        # read1 gives what one system call brought, so nothing that came before a reset is lost. With TLS that
        # is one record; full ones, which others follow, are gathered, because every write, digest and report
        # has its price.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            arrived += chunk
            now = time.monotonic()
            is_full = len(chunk) == _TLS_RECORD
            if not is_full or len(arrived) >= _CHUNK or now - written_at >= _WRITE_INTERVAL_S:
                written_at = now
                _keep(arrived, partial, total, transfer)
    finally:
        if arrived:
            _keep(arrived, partial, total, transfer)


def _keep(arrived: bytearray, partial: PartialFile, total: int | None, transfer: Transfer) -> None:
    """Write what arrived and empty it."""
    block = bytes(arrived)
    arrived.clear()
    before = partial.offset
    missing = max(len(block), (total or 0) - before)
    try:
        partial.append(block)
    except OSError as error:
        raise write_error(error, partial.path, missing) from error
    transfer.moved(len(block))
    transfer.listener.received(partial.offset, total)
    if total is not None and before // _DISK_CHECK_EVERY != partial.offset // _DISK_CHECK_EVERY:
        require_disk(partial.path.parent, max(0, total - partial.offset))


def _range_headers(remote: RemoteFile, partial: PartialFile) -> dict[str, str]:
    if partial.offset == 0:
        return {}
    headers = {"Range": f"bytes={partial.offset}-"}
    # With a digest to check, a changed file is found out anyway, and some servers answer a conditional range
    # with the whole file; without one the server must promise that it still has the same file.
    if remote.sha256 is None and partial.validator is not None:
        headers["If-Range"] = partial.validator
    return headers


def _check_status(
    response: requests.Response, remote: RemoteFile, partial: PartialFile, refusal: Refusal
) -> None:
    status = response.status_code
    if status in (200, 206):
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadFailed(1, "the server compresses the file although it was asked not to")
        return
    if status == 416:
        partial.restart()
        raise TransferInterrupted("The server no longer has the rest of this file")
    moved = urlsplit(response.url).netloc != urlsplit(remote.url).netloc
    if status in (401, 403) and moved:  # a signed link of the content network that has run out
        raise TransferInterrupted(f"HTTP {status} from the content server")
    named = refusal(status, response.headers)
    if named is not None:
        raise named
    if status in TRANSIENT_STATUSES:
        raise TransferInterrupted(f"HTTP {status}", retry_after_s=retry_after_s(response.headers))
    raise DownloadFailed(1, f"HTTP {status}")


def _total(response: requests.Response, remote: RemoteFile, partial: PartialFile) -> int | None:
    """Size of the whole file; restarts ``partial`` when the answer is the whole and not the rest."""
    if response.status_code == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != partial.offset:
            partial.restart()
            raise TransferInterrupted("The server sent another part of the file than asked for")
        announced = None if match[2] == "*" else int(match[2])
    else:
        length = response.headers.get("Content-Length", "")
        announced = int(length) if length.isdigit() else None
    # Checked before anything is given up: a proxy's error page may come as a success, too.
    if announced is not None and remote.size_bytes is not None and announced != remote.size_bytes:
        raise TransferInterrupted(f"The server announces {announced} bytes instead of {remote.size_bytes}")
    if response.status_code == 200:
        partial.restart()
    return announced if announced is not None else remote.size_bytes


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


class _Authorization(requests.auth.AuthBase):
    """A given header; being an auth object it wins over ~/.netrc, and redirects to other hosts drop it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


def _session(remote: RemoteFile) -> requests.Session:
    session = requests.Session()
    session.headers.update({"User-Agent": f"rbee/{rbee.__version__}", "Accept-Encoding": "identity"})
    if remote.authorization is not None:
        session.auth = _Authorization(remote.authorization)
    return session


@contextmanager
def _network_errors(stall_timeout_s: float) -> Iterator[None]:
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError)):
            raise TransferInterrupted(f"No data for {stall_timeout_s:g} seconds", stalled=True) from error
        if is_untrusted(error):
            raise UntrustedServer("The server's certificate could not be verified") from error
        raise TransferInterrupted(network_reason(error)) from error
