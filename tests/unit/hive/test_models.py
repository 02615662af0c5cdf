"""The models of a node: found, fetched once however many ask, converted once, removed."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from rbee.core.errors import (
    DiskFull,
    DownloadNotFound,
    ModelIncompatible,
    ModelInUse,
    ModelNotFound,
    ServiceUnavailable,
)
from rbee.core.references import ModelRef, parse_model_ref
from rbee.hive.downloads import Downloads
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.metrics import HiveMetrics
from rbee.hive.models import ModelStore
from rbee.models.catalog import Catalog
from rbee.models.conversion import convert
from rbee.testing.fake_provisioner import FakeProvisioner
from support.gguf_factory import TinyModel

REF = parse_model_ref("hf:org/repo")
OTHER = parse_model_ref("hf:org/other")


class Node:
    """A models directory with a store over it."""

    def __init__(self, root: Path, gguf: Path) -> None:
        self.models_dir = root / "models"
        self.models_dir.mkdir()
        self.database = root / "models.db"
        self.gguf = gguf
        self.provisioner = FakeProvisioner(self._arrive)
        self.metrics = HiveMetrics()
        self.store = ModelStore(self.provisioner, self.models_dir, self.database, self.metrics)

    def _arrive(self, ref: ModelRef) -> Path:
        path = self.models_dir / f"{ref.reference.replace('/', '-')}.gguf"
        shutil.copy(self.gguf, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        Catalog(self.database).add(ref, path, path.stat().st_size, digest)
        return path

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"rbee_hive_{name}", labels)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyModel().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def node(tmp_path: Path, tiny_gguf: Path) -> Node:
    return Node(tmp_path, tiny_gguf)


def ignore(_event: dict[str, Any]) -> None:
    """Takes an event."""


def nobody(_ref: ModelRef) -> list[str]:
    return []


def downloading(done: int) -> dict[str, Any]:
    data = {"stage": "downloading", "bytes_downloaded": done, "bytes_total": 100, "speed_mbps": 1.0}
    return {"event": "progress", "data": data}


def test_a_model_is_fetched_once_and_then_present(node: Node) -> None:
    assert node.store.find(REF) is None
    local = node.store.provide(REF, ignore)
    assert local.format is ModelFormat.GGUF
    assert local.size_bytes == local.path.stat().st_size
    again = node.store.start_download(REF)
    assert (again.id, again.local_path) == ("cached", local.path)
    assert node.provisioner.fetches == [REF]


def test_requests_for_one_model_share_one_transfer_and_other_models_have_their_own(node: Node) -> None:
    node.provisioner.gate.clear()
    first, second, other = (node.store.start_download(ref) for ref in (REF, REF, OTHER))
    assert first is second
    assert other.id != first.id
    assert first.local_path is None
    waiting = [gevent.spawn(node.store.provide, REF, ignore) for _ in range(3)]
    gevent.sleep(0)
    node.provisioner.gate.set()
    assert {greenlet.get(timeout=5).path for greenlet in waiting} == {first.wait().path}
    other.wait()
    assert sorted(map(str, node.provisioner.fetches)) == [str(OTHER), str(REF)]
    assert node.metric("model_downloads_total", outcome="ok") == 2
    assert node.metric("download_active") == 0


def test_a_caller_that_leaves_does_not_stop_the_transfer(node: Node) -> None:
    node.provisioner.gate.clear()
    leaving = gevent.spawn(node.store.provide, REF, ignore)
    gevent.sleep(0)
    leaving.kill()
    download = node.store.start_download(REF)
    node.provisioner.gate.set()
    assert download.wait().path.exists()
    assert node.provisioner.fetches == [REF]


def test_a_failed_transfer_is_told_and_the_next_request_tries_again(node: Node) -> None:
    node.provisioner.error = DiskFull(10, 1)
    failed = node.store.start_download(REF)
    with pytest.raises(DiskFull):
        failed.wait()
    assert failed.local_path is None
    assert node.store.download(failed.id) is failed
    node.provisioner.error = None
    assert node.store.start_download(REF).wait().path.exists()
    assert node.metric("model_downloads_total", outcome="DISK_FULL") == 1


def test_progress_and_retries_reach_whoever_waits(node: Node) -> None:
    retry = {"event": "narration", "data": {"actor": "model-provisioner", "action": "retry", "human": "x"}}
    node.provisioner.events = [downloading(40), retry, downloading(100)]
    seen: list[dict[str, Any]] = []
    node.store.provide(REF, seen.append)
    assert seen == [downloading(40), retry, downloading(100)]
    assert node.metric("download_progress_percent") == 100


def test_a_transfer_without_figures_still_has_one_progress_event(node: Node) -> None:
    download = node.store.start_download(REF)
    local = download.wait()
    (event,) = download.events()
    assert event["data"] == {
        "stage": "downloading",
        "bytes_downloaded": local.size_bytes,
        "bytes_total": local.size_bytes,
        "speed_mbps": 0.0,
    }


def test_an_unknown_download_is_not_found(node: Node) -> None:
    for unknown in ("download-1", "cached", ""):
        with pytest.raises(DownloadNotFound):
            node.store.download(unknown)


def test_a_finished_download_is_kept_for_ten_minutes() -> None:
    now = [0.0]
    downloads = Downloads(lambda: now[0])
    local = LocalModel(Path("/m.gguf"), ModelFormat.GGUF, 1)
    download = downloads.share(REF, lambda _tell: local)
    now[0] = 5000.0
    assert downloads.get(download.id) is download, "it runs"
    assert download.wait() is local
    now[0] += 599
    assert downloads.get(download.id) is download
    now[0] += 1
    with pytest.raises(DownloadNotFound):
        downloads.get(download.id)


# -- files on this node -----------------------------------------------------------------------------------


def file_ref(path: Path) -> ModelRef:
    return parse_model_ref(f"file:{path}")


def test_a_file_is_registered_where_it_lies(node: Node) -> None:
    ref = file_ref(node.gguf)
    registered = node.store.start_download(ref)
    assert (registered.id, registered.local_path) == ("cached", node.gguf)
    local = node.store.find(ref)
    assert local is not None
    assert (local.format, local.digest) == (ModelFormat.GGUF, None)
    assert node.provisioner.fetches == []


def test_a_ready_folder_is_registered_and_used_as_it_is(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "ready"
    folder.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    ref = file_ref(folder)
    local = node.store.provide(ref, ignore)
    assert (local.format, local.path, local.size_bytes) == (ModelFormat.CTRANSLATE2, folder, 6)
    assert node.store.converted(local, ref, "int8") == folder
    assert node.store.convert(local, ref, "int8", ignore) == folder
    assert node.provisioner.conversions == []


def wrong_extension(path: Path, gguf: bytes) -> Path:
    path = path / "model.bin"
    path.write_bytes(gguf)
    return path


def text_named_gguf(path: Path, _gguf: bytes) -> Path:
    path = path / "text.gguf"
    path.write_text("Once upon a time")
    return path


def truncated(path: Path, gguf: bytes) -> Path:
    path = path / "cut.gguf"
    path.write_bytes(gguf[: len(gguf) // 2])
    return path


def incomplete_folder(path: Path, _gguf: bytes) -> Path:
    (path / "folder").mkdir()
    (path / "folder" / "model.bin").write_text("x")
    return path / "folder"


@pytest.mark.parametrize(
    "make", [wrong_extension, text_named_gguf, truncated, incomplete_folder], ids=lambda make: make.__name__
)
def test_what_is_no_model_is_refused_before_anything_starts(
    node: Node, tmp_path: Path, make: Callable[[Path, bytes], Path]
) -> None:
    ref = file_ref(make(tmp_path, node.gguf.read_bytes()))
    with pytest.raises(ModelIncompatible):
        node.store.provide(ref, ignore)
    assert node.store.records() == []


def test_a_missing_file_is_told_in_the_downloads_stream(node: Node, tmp_path: Path) -> None:
    download = node.store.start_download(file_ref(tmp_path / "none.gguf"))
    assert download.local_path is None
    assert download.id != "cached"
    with pytest.raises(ModelNotFound):
        download.wait()
    assert [event["data"]["stage"] for event in download.events()] == ["downloading"]


def test_a_file_that_is_gone_is_no_longer_a_model(node: Node, tmp_path: Path) -> None:
    path = Path(shutil.copy(node.gguf, tmp_path / "going.gguf"))
    ref = file_ref(path)
    node.store.provide(ref, ignore)
    path.unlink()
    assert node.store.find(ref) is None
    assert node.store.records() == []


# -- conversion -------------------------------------------------------------------------------------------


def test_conversions_of_one_model_to_one_type_are_shared(node: Node) -> None:
    local = node.store.provide(REF, ignore)
    node.provisioner.gate.clear()
    waiting = [
        gevent.spawn(node.store.convert, local, REF, kind, ignore) for kind in ("int8", "int8", "float32")
    ]
    gevent.sleep(0)
    node.provisioner.gate.set()
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert sorted(node.provisioner.conversions) == [(REF, "float32"), (REF, "int8")]
    assert node.metric("conversions_total", outcome="ok") == 2


def test_a_failed_conversion_is_told_and_tried_again(node: Node) -> None:
    local = node.store.provide(REF, ignore)
    node.provisioner.error = ModelIncompatible("no such architecture")
    for _ in range(2):
        with pytest.raises(ModelIncompatible):
            node.store.convert(local, REF, "int8", ignore)
    assert len(node.provisioner.conversions) == 2
    assert node.metric("conversions_total", outcome="MODEL_INCOMPATIBLE") == 2


def test_a_model_without_a_conversion_has_none(node: Node) -> None:
    local = node.store.provide(REF, ignore)
    assert node.store.converted(local, REF, "int8") is None


def test_a_finished_conversion_is_found_again(node: Node) -> None:
    local = node.store.provide(REF, ignore)
    folder = convert(local.path, node.models_dir, "int8", sha256=local.digest, on_progress=lambda *_: None)
    assert node.store.converted(local, REF, "int8") == folder
    assert node.store.convert(local, REF, "int8", ignore) == folder
    assert node.store.converted(local, REF, "float32") is None
    assert node.provisioner.conversions == []
    node.store.remove(REF, nobody)
    assert not folder.exists()


# -- the catalog ------------------------------------------------------------------------------------------


def test_records_show_what_the_header_says(node: Node) -> None:
    local = node.store.provide(REF, ignore)
    node.store.touch(REF)
    (record,) = node.store.records()
    assert record["model_ref"] == "hf:org/repo"
    assert (record["provider"], record["reference"], record["variant"]) == ("hf", "org/repo", "")
    assert (record["local_path"], record["size_bytes"]) == (str(local.path), local.size_bytes)
    assert (record["format"], record["architecture"], record["quantization"]) == ("gguf", "llama", "F32")
    assert (record["context_length"], record["block_count"], record["eos_token_id"]) == (512, 2, 1)
    assert record["last_used_unix"] >= record["downloaded_at_unix"]


def test_removal_takes_the_file_and_the_row(node: Node) -> None:
    path = node.store.provide(REF, ignore).path
    node.store.remove(REF, nobody)
    assert not path.exists()
    assert node.store.find(REF) is None


def test_a_model_in_use_is_not_removed(node: Node) -> None:
    path = node.store.provide(REF, ignore).path
    with pytest.raises(ModelInUse) as refused:
        node.store.remove(REF, lambda ref: ["worker-1"] if ref == REF else [])
    assert refused.value.details == {"model_ref": "hf:org/repo", "workers": ["worker-1"]}
    assert path.exists()


def test_a_model_that_is_being_converted_is_not_removed(node: Node) -> None:
    local = node.store.provide(REF, ignore)
    node.provisioner.gate.clear()
    converting = gevent.spawn(node.store.convert, local, REF, "int8", ignore)
    gevent.sleep(0)
    with pytest.raises(ModelInUse):
        node.store.remove(REF, nobody)
    node.provisioner.gate.set()
    converting.get(timeout=5)
    node.store.remove(REF, nobody)


def test_an_unknown_model_cannot_be_removed(node: Node) -> None:
    with pytest.raises(ModelNotFound):
        node.store.remove(REF, nobody)


def test_removing_a_file_reference_leaves_the_file(node: Node) -> None:
    ref = file_ref(node.gguf)
    node.store.provide(ref, ignore)
    node.store.remove(ref, nobody)
    assert node.gguf.exists()
    assert node.store.records() == []


def test_a_closed_store_ends_transfers_and_begins_none(node: Node) -> None:
    node.provisioner.gate.clear()
    running = node.store.start_download(REF)
    gevent.sleep(0)
    node.store.close()
    with pytest.raises(ServiceUnavailable):
        running.wait()
    with pytest.raises(ServiceUnavailable):
        node.store.start_download(OTHER)


def test_an_unreadable_catalog_is_told_as_such(node: Node) -> None:
    node.database.mkdir()
    with pytest.raises(ServiceUnavailable):
        node.store.find(REF)
    node.database.rmdir()
    assert node.store.find(REF) is None
