"""Fetching: what is transferred, what is shared or reused, and what the catalog then says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import ModelRef, parse_model_ref
from rbee.models.catalog import Catalog
from rbee.models.fetching import fetch_model
from rbee.models.providers.local_file import LocalFileProvider
from rbee.models.transfers import RetryPolicy, Transfer
from support.listeners import RecordingListener
from support.model_providers import FakeProvider

REPO = parse_model_ref("hf:org/repo")
QUANT = parse_model_ref("hf:org/repo:Q4_0")
CONTENT = b"GGUF" + bytes(1000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "models.db")


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider({str(REPO): CONTENT, str(QUANT): CONTENT})


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


Fetch = Callable[[ModelRef], Path]


@pytest.fixture
def fetch(models_dir: Path, catalog: Catalog, provider: FakeProvider, listener: RecordingListener) -> Fetch:
    def run(ref: ModelRef) -> Path:
        transfer = Transfer(RetryPolicy(), listener, sleep=lambda _seconds: None)
        return fetch_model(ref, provider, models_dir, lambda: catalog, transfer)

    return run


def test_a_fetched_model_is_recorded_with_size_and_digest(
    fetch: Fetch, models_dir: Path, catalog: Catalog
) -> None:
    path = fetch(REPO)
    assert path == models_dir / "hf" / "org" / "repo" / "model.gguf"
    row = catalog.find(REPO)
    assert row is not None
    assert (row.local_path, row.size_bytes, row.digest) == (path, len(CONTENT), DIGEST)


def test_start_and_end_of_a_download_are_narrated(fetch: Fetch, listener: RecordingListener) -> None:
    fetch(REPO)
    assert [human for _, human in listener.narration] == [
        "Looking up hf:org/repo",
        "Downloading model.gguf (0.0 MB)",
        "Downloaded model.gguf (0.0 MB)",
    ]
    assert {action for action, _ in listener.narration} == {"model_download"}


def test_a_second_reference_to_the_same_file_moves_no_bytes(
    fetch: Fetch, provider: FakeProvider, catalog: Catalog
) -> None:
    assert fetch(REPO) == fetch(QUANT)
    assert provider.fetched == 1
    assert [str(row.ref) for row in catalog.list()] == ["hf:org/repo", "hf:org/repo:Q4_0"]


@pytest.mark.parametrize("states_digest", [True, False])
def test_a_complete_file_without_a_row_is_taken_over(
    fetch: Fetch, provider: FakeProvider, catalog: Catalog, states_digest: bool
) -> None:
    provider.states_digest = states_digest
    fetch(REPO)
    catalog.remove(REPO)
    fetch(REPO)
    assert provider.fetched == 1
    row = catalog.find(REPO)
    assert row is not None
    assert row.digest == DIGEST


def test_a_file_that_is_not_what_the_source_has_is_replaced_for_all_its_references(
    fetch: Fetch, provider: FakeProvider, catalog: Catalog
) -> None:
    path = fetch(REPO)
    provider.models[str(QUANT)] = other = b"GGUF" + b"x" * 2000
    assert fetch(QUANT) == path
    assert path.read_bytes() == other
    for row in catalog.list():
        assert (row.size_bytes, row.digest) == (len(other), hashlib.sha256(other).hexdigest())


def test_a_damaged_file_without_a_row_is_fetched_again(
    fetch: Fetch, provider: FakeProvider, catalog: Catalog
) -> None:
    path = fetch(REPO)
    catalog.remove(REPO)
    path.write_bytes(b"GGUF" + bytes(999) + b"x")
    fetch(REPO)
    assert provider.fetched == 2
    assert path.read_bytes() == CONTENT


def test_what_is_no_gguf_is_deleted_and_not_recorded(
    fetch: Fetch, provider: FakeProvider, models_dir: Path, catalog: Catalog
) -> None:
    provider.models[str(REPO)] = b"<html>sign in</html>"
    with pytest.raises(ModelIncompatible, match="GGUF"):
        fetch(REPO)
    assert not list(models_dir.rglob("*.gguf"))
    assert catalog.list() == ()


def test_a_model_that_does_not_exist_costs_no_catalog(models_dir: Path, listener: RecordingListener) -> None:
    def no_catalog() -> Catalog:
        raise AssertionError("opened")

    with pytest.raises(ModelNotFound):
        fetch_model(REPO, FakeProvider({}), models_dir, no_catalog, Transfer(RetryPolicy(), listener))
    assert not models_dir.exists()


def test_a_cached_file_is_used_where_it_lies_once_its_digest_is_right(
    fetch: Fetch, provider: FakeProvider, tmp_path: Path, catalog: Catalog, models_dir: Path
) -> None:
    provider.local_path = tmp_path / "cache" / "model.gguf"
    provider.local_path.parent.mkdir()
    provider.local_path.write_bytes(CONTENT)
    assert fetch(REPO) == provider.local_path
    assert not models_dir.exists()
    row = catalog.find(REPO)
    assert row is not None
    assert row.digest == DIGEST


def test_a_file_of_the_node_is_recorded_without_being_read(
    models_dir: Path, catalog: Catalog, listener: RecordingListener, tmp_path: Path
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(CONTENT)
    ref = parse_model_ref(f"file:{path}")
    transfer = Transfer(RetryPolicy(), listener)
    assert fetch_model(ref, LocalFileProvider(), models_dir, lambda: catalog, transfer) == path
    row = catalog.find(ref)
    assert row is not None
    assert (row.local_path, row.size_bytes, row.digest) == (path, len(CONTENT), None)

    catalog.set_digests(ref, DIGEST)
    fetch_model(ref, LocalFileProvider(), models_dir, lambda: catalog, transfer)
    again = catalog.find(ref)
    assert again is not None
    assert again.digest == DIGEST
