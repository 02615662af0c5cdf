"""Downloads over real sockets: what is kept, what is asked for again, and what is never accepted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from pathlib import Path

import pytest

from rbee.core.errors import (
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    DownloadTimeout,
    ModelAccessDenied,
    RbeeError,
    ServiceUnavailable,
)
from rbee.models import download as downloading
from rbee.models import storage
from rbee.models.download import Downloaded, RemoteFile, download
from rbee.models.network_errors import retry_after_s
from rbee.models.partial_file import PartialFile, observe
from rbee.models.transfers import RetryPolicy, Transfer
from support.file_sending import Fault, Handler, Servers, sha256_of
from support.listeners import RecordingListener

SIZE = 1_000_003
CONTENT = random.Random(SIZE).randbytes(SIZE)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class FileHandler(Handler):
    """Serves one folder."""

    server_label = "files"
    folder: Path

    def respond(self) -> None:
        path = self.folder / Path(self.path).name
        self.send_file(path, sha256_of(path)[:32])


class Scene:
    """A server with one file, and a place to download it to."""

    def __init__(self, folder: Path) -> None:
        self.served = folder / "served" / "model.gguf"
        self.target = folder / "models" / "model.gguf"
        self.served.parent.mkdir()
        self.target.parent.mkdir()
        self.served.write_bytes(CONTENT)
        self.servers = Servers()
        self.url = self.servers.start(FileHandler, folder=self.served.parent).url + "/model.gguf"
        self.listener = RecordingListener()

    def download(
        self,
        *,
        size: int | None = SIZE,
        sha256: str | None = DIGEST,
        attempts: int = 6,
        stall_timeout_s: float = 5.0,
        authorization: str | None = None,
    ) -> Downloaded:
        policy = RetryPolicy(attempts, (1,), stall_timeout_s)
        remote = RemoteFile(self.url, size, sha256, authorization)
        return download(remote, self.target, Transfer(policy, self.listener), _refusal)

    def spoil(self, *faults: Fault) -> None:
        self.servers.recorder.faults[:] = faults

    @property
    def partial(self) -> Path:
        return self.target.with_name("model.gguf.partial")

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.servers.recorder.transfers()]

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.servers.recorder.transfers())


def _refusal(status: int, _headers: Mapping[str, str]) -> RbeeError | None:
    return ModelAccessDenied("hf:org/repo") if status in (401, 403) else None


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.servers.stop()


def test_a_download_gives_the_file_its_size_and_digest_and_leaves_nothing_else(scene: Scene) -> None:
    assert scene.download() == Downloaded(scene.target, SIZE, DIGEST)
    assert scene.target.read_bytes() == CONTENT
    assert list(scene.target.parent.iterdir()) == [scene.target]
    assert scene.listener.progress[-1] == (SIZE, SIZE)
    assert scene.listener.retries == []


def test_a_reset_connection_is_continued_and_only_missing_bytes_are_sent_again(scene: Scene) -> None:
    scene.spoil(Fault("reset", at=0.4, times=1))
    scene.download()
    assert scene.target.read_bytes() == CONTENT
    assert scene.ranges == [None, f"bytes={SIZE * 4 // 10}-"]
    assert scene.sent == SIZE
    assert scene.listener.retries == [
        "Error: Connection reset by peer",
        "Retrying download (attempt 2/6)... delay 1ms",
    ]
    done = [done for done, _ in scene.listener.progress]
    assert done == sorted(done)
    assert SIZE * 4 // 10 in done


def test_six_resets_end_the_download_and_keep_every_byte_for_the_next(scene: Scene) -> None:
    scene.spoil(Fault("reset", at=0.4))
    with pytest.raises(DownloadFailed) as caught:
        scene.download()
    assert caught.value.details == {"attempts": 6, "last_error": "Connection reset by peer"}
    assert scene.partial.stat().st_size == SIZE * 4 // 10
    assert len(scene.ranges) == 6
    assert observe(scene.target) == (SIZE * 4 // 10, SIZE)

    scene.spoil()
    scene.download()
    assert scene.target.read_bytes() == CONTENT
    assert scene.sent == SIZE


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_an_orderly_but_early_end_is_not_taken_for_the_whole_file(scene: Scene, sha256: str | None) -> None:
    scene.spoil(Fault("close", at=0.7, times=1))
    scene.download(size=None, sha256=sha256)
    assert scene.target.read_bytes() == CONTENT
    assert scene.sent == SIZE


def test_a_stalled_connection_is_given_up_and_continued(scene: Scene) -> None:
    scene.spoil(Fault("stall", at=0.5, times=1))
    scene.download(stall_timeout_s=0.2)
    assert scene.target.read_bytes() == CONTENT
    assert scene.listener.retries[0] == "Error: No data for 0.2 seconds"
    assert scene.ranges[1] == f"bytes={SIZE // 2}-"


def test_stalls_throughout_are_a_download_timeout(scene: Scene) -> None:
    scene.spoil(Fault("stall", at=0.5))
    with pytest.raises(DownloadTimeout) as caught:
        scene.download(stall_timeout_s=0.1, attempts=3)
    assert caught.value.details == {"attempts": 3}
    assert scene.partial.stat().st_size == SIZE // 2


def test_a_slow_trickle_is_not_a_stall(scene: Scene) -> None:
    scene.spoil(Fault("throttle", bytes_per_s=2_000_000))
    scene.download(stall_timeout_s=0.3)
    assert scene.listener.retries == []


def test_a_flipped_bit_is_found_and_the_file_fetched_once_more(scene: Scene) -> None:
    scene.spoil(Fault("flip", at=0.3, times=1))
    scene.download()
    assert scene.target.read_bytes() == CONTENT
    assert scene.ranges == [None, None]
    assert "digest differs" in scene.listener.retries[0]
    assert scene.listener.begun == [0, 0]


def test_a_file_that_stays_wrong_is_refused_and_deleted(scene: Scene) -> None:
    scene.spoil(Fault("flip", at=0.3))
    with pytest.raises(ChecksumMismatch) as caught:
        scene.download()
    assert caught.value.details["expected"] == DIGEST
    assert len(caught.value.details["actual"]) == 64
    assert len(scene.ranges) == 2
    assert list(scene.target.parent.iterdir()) == []


def test_a_server_that_announces_another_size_is_not_believed(scene: Scene) -> None:
    scene.spoil(Fault("length", extra=10))
    with pytest.raises(DownloadFailed, match=f"announces {SIZE + 10} bytes instead of {SIZE}"):
        scene.download(attempts=2)
    assert not scene.target.exists()


def test_a_success_of_the_wrong_size_does_not_cost_the_bytes_already_here(scene: Scene) -> None:
    scene.spoil(
        Fault("reset", at=0.5, times=1), Fault("whole", skip=1, times=1), Fault("length", skip=1, times=1)
    )
    scene.download()
    assert scene.ranges == [None, f"bytes={SIZE // 2}-", f"bytes={SIZE // 2}-"]


def test_a_server_without_ranges_starts_over_and_progress_says_so_to_the_listener(scene: Scene) -> None:
    scene.spoil(Fault("reset", at=0.5, times=1), Fault("whole", skip=1))
    scene.download()
    assert scene.target.read_bytes() == CONTENT
    assert scene.ranges == [None, f"bytes={SIZE // 2}-"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(scene: Scene, status: int) -> None:
    scene.spoil(Fault("status", status=status, retry_after=0, times=1))
    scene.download()
    assert scene.listener.retries[0] == f"Error: HTTP {status}"


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(scene: Scene, status: int) -> None:
    scene.spoil(Fault("status", status=status, retry_after=1, times=1))
    scene.download()
    assert scene.listener.retries[1].endswith("delay 1000ms")
    first, second = scene.servers.recorder.transfers()
    assert second.at - first.at >= 1.0


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_s({"Retry-After": "7"}) == 7.0
    assert 50 < retry_after_s({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after_s({"Retry-After": formatdate(time.time() - 60, usegmt=True)}) == 0.0
    for text in ("", "soon", "-1", "1.5"):
        assert retry_after_s({"Retry-After": text}) == 0.0


def test_a_refusal_is_final_and_leaves_nothing(scene: Scene) -> None:
    scene.spoil(Fault("status", status=403))
    with pytest.raises(ModelAccessDenied):
        scene.download()
    assert len(scene.ranges) == 1
    assert list(scene.target.parent.iterdir()) == []


def test_an_unknown_refusal_is_final_too(scene: Scene) -> None:
    scene.spoil(Fault("status", status=418))
    with pytest.raises(DownloadFailed, match="HTTP 418"):
        scene.download()
    assert len(scene.ranges) == 1


def test_a_file_that_changed_at_its_source_is_started_anew(scene: Scene) -> None:
    scene.spoil(Fault("reset", at=0.4))
    with pytest.raises(DownloadFailed):
        scene.download(attempts=1)
    other = os.urandom(SIZE)
    scene.served.write_bytes(other)
    scene.spoil()
    scene.download(sha256=hashlib.sha256(other).hexdigest())
    assert scene.target.read_bytes() == other
    assert scene.ranges == [None, None]


def test_without_a_digest_the_server_must_vouch_for_the_rest(scene: Scene) -> None:
    scene.spoil(Fault("reset", at=0.4))
    with pytest.raises(DownloadFailed):
        scene.download(size=None, sha256=None, attempts=1)
    other = os.urandom(SIZE)
    scene.served.write_bytes(other)
    scene.spoil()
    scene.download(size=None, sha256=None)
    assert scene.target.read_bytes() == other
    assert scene.ranges == [None, f"bytes={SIZE * 4 // 10}-"]


def test_without_a_digest_an_unchanged_file_is_continued(scene: Scene) -> None:
    scene.spoil(Fault("reset", at=0.4))
    with pytest.raises(DownloadFailed):
        scene.download(size=None, sha256=None, attempts=1)
    scene.spoil()
    scene.download(size=None, sha256=None)
    assert scene.target.read_bytes() == CONTENT
    assert scene.sent == SIZE


@pytest.mark.parametrize(
    "note", ["", "not json", "[]", json.dumps({"sha256": "00" * 32, "size_bytes": SIZE})]
)
def test_a_partial_file_of_unknown_or_other_origin_never_ends_in_the_result(scene: Scene, note: str) -> None:
    scene.partial.write_bytes(b"x" * 1000)
    scene.partial.with_name("model.gguf.partial.json").write_text(note)
    scene.download()
    assert scene.target.read_bytes() == CONTENT


def test_a_complete_partial_file_needs_no_request(scene: Scene) -> None:
    scene.partial.write_bytes(CONTENT)
    scene.download()
    assert scene.target.read_bytes() == CONTENT
    assert scene.ranges == []


def test_an_authorization_is_sent_to_the_host_it_is_for(scene: Scene) -> None:
    scene.download(authorization="Bearer secret")
    assert [request.authorization for request in scene.servers.recorder.transfers()] == ["Bearer secret"]


def test_too_little_disk_is_refused_before_a_request(scene: Scene) -> None:
    with pytest.raises(DiskFull) as caught:
        scene.download(size=2**62, sha256=None)
    assert caught.value.details["required"] == 2**42
    assert scene.ranges == []
    assert list(scene.target.parent.iterdir()) == []


def test_too_little_disk_for_an_announced_size_is_refused_before_the_body(
    scene: Scene,
) -> None:
    scene.spoil(Fault("length", extra=2**60))
    with pytest.raises(DiskFull):
        scene.download(size=None, sha256=None)
    assert scene.listener.progress == []


def test_a_disk_that_fills_up_meanwhile_ends_the_transfer_and_keeps_its_bytes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(scene.target.parent)

    def usage(_path: object) -> object:
        taken_by_others = scene.partial.exists() and scene.partial.stat().st_size >= SIZE // 2
        return real._replace(free=1000 if taken_by_others else real.free)

    monkeypatch.setattr(storage.shutil, "disk_usage", usage)
    monkeypatch.setattr(downloading, "_DISK_CHECK_EVERY", 1000)
    scene.spoil(Fault("throttle", bytes_per_s=5_000_000))
    with pytest.raises(DiskFull):
        scene.download()
    assert len(scene.ranges) == 1, "no attempt is repeated on a full disk"
    kept = scene.partial.stat().st_size
    assert SIZE // 2 <= kept < SIZE
    monkeypatch.undo()
    scene.spoil()
    scene.download()
    assert scene.target.read_bytes() == CONTENT
    assert scene.ranges[1] == f"bytes={kept}-"


def test_a_write_that_finds_the_disk_full_is_told_as_that(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = PartialFile.append

    def until_full(partial: PartialFile, chunk: bytes) -> None:
        if partial.offset + len(chunk) > SIZE // 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(partial, chunk)

    monkeypatch.setattr(PartialFile, "append", until_full)
    with pytest.raises(DiskFull) as caught:
        scene.download()
    assert caught.value.details["required"] >= 1
    assert len(scene.ranges) == 1
    monkeypatch.undo()
    scene.download()
    assert scene.target.read_bytes() == CONTENT


def test_a_link_in_place_of_the_partial_file_is_not_followed(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    scene.partial.symlink_to(outside)
    with pytest.raises(ServiceUnavailable):
        scene.download()
    assert outside.read_bytes() == b"precious"


def test_a_host_that_does_not_answer_is_named_in_words_without_its_url(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    transfer = Transfer(RetryPolicy(2, (1,), 1.0), RecordingListener())
    remote = RemoteFile(f"http://127.0.0.1:{port}/model.gguf?Signature=secret", None, None)
    with pytest.raises(DownloadFailed) as caught:
        download(remote, tmp_path / "model.gguf", transfer, _refusal)
    assert caught.value.details["last_error"] == "Connection refused"
    assert "secret" not in caught.value.message
