"""The hub through huggingface-hub and its environment, against a hub on loopback."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import hf_hub_download

from rbee.core.errors import ChecksumMismatch, DiskFull, RbeeError
from rbee.core.references import parse_model_ref
from rbee.models.catalog import Catalog, CatalogRow
from rbee.models.fetching import fetch_model
from rbee.models.providers.hub import HubProvider
from rbee.models.storage import NOTE_SUFFIX
from rbee.models.transfers import RetryPolicy, Transfer
from support.file_sending import Fault
from support.hub_server import Hub, Stated
from support.listeners import RecordingListener
from support.provisioning import Place, Provisioner, run_provisioner

SIZE = 2_000_000
FILES = {name: b"GGUF" + os.urandom(SIZE - 4) for name in ("tiny.Q4_0.gguf", "tiny.Q8_0.gguf")}
TOKEN = "hf_knows_the_private_one"
STRANGER = "hf_knows_nothing"
CONTENT = FILES["tiny.Q8_0.gguf"]
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FETCHED = "hf/org/tiny/tiny.Q8_0.gguf"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    for repo in ("org/tiny", "org/private", "org/gated"):
        folder = tmp_path / "hub" / repo
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("# tiny\n")
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
    granted = frozenset({"org/private", "org/gated"})
    with Hub(
        tmp_path / "hub",
        tokens={TOKEN: granted, STRANGER: frozenset()},
        private=frozenset({"org/private"}),
        gated=frozenset({"org/gated"}),
    ) as hub:
        yield hub


@dataclass
class Outcome:
    """What one fetch did and said."""

    path: Path | None
    error: RbeeError | None
    listener: RecordingListener


class Client:
    """Fetches through the flow of the product, in this process."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.models_dir = root / "models"
        self.cache_dir = root / "cache"
        self.catalog = Catalog(root / "models.db")
        self._hub = hub

    def fetch(self, ref: str, token: str | Literal[False] = False) -> Outcome:
        provider = HubProvider(endpoint=self._hub.url, cache_dir=self.cache_dir, token=token)
        listener = RecordingListener()
        transfer = Transfer(RetryPolicy(3, (1,), 5.0), listener)
        try:
            path = fetch_model(
                parse_model_ref(ref), provider, self.models_dir, lambda: self.catalog, transfer
            )
        except RbeeError as error:
            return Outcome(None, error, listener)
        return Outcome(path, None, listener)

    def row(self, ref: str) -> CatalogRow | None:
        return self.catalog.find(parse_model_ref(ref))

    def files(self) -> list[str]:
        found = (path for path in self.models_dir.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.models_dir)) for path in found)
        return sorted(
            name for name in names if not name.startswith(".locks/") and not name.endswith(NOTE_SUFFIX)
        )

    def fill_cache(self) -> Path:
        """Download into the hub client's own cache, with that client."""
        path = hf_hub_download(
            "org/tiny", "tiny.Q8_0.gguf", endpoint=self._hub.url, cache_dir=self.cache_dir, token=False
        )
        self._hub.recorder.clear()
        return Path(path)


@pytest.fixture
def client(tmp_path: Path, hub: Hub) -> Client:
    return Client(tmp_path, hub)


def test_a_repository_is_resolved_downloaded_verified_and_recorded(client: Client, hub: Hub) -> None:
    outcome = client.fetch("hf:org/tiny")
    assert outcome.path == client.models_dir / FETCHED
    assert outcome.path.read_bytes() == CONTENT
    assert client.files() == [FETCHED]
    row = client.row("hf:org/tiny")
    assert row is not None
    assert (row.id, row.size_bytes, row.digest) == ("tiny.Q8_0", SIZE, DIGEST)
    assert outcome.listener.progress[-1] == (SIZE, SIZE)
    assert hub.recorder.transfers()[0].sent == SIZE


@pytest.mark.parametrize("ref", ["hf:org/tiny:q4_0", "hf:org/tiny/tiny.Q4_0.gguf"])
def test_a_quantisation_or_a_file_can_be_named(client: Client, ref: str) -> None:
    client.fetch(ref)
    assert client.files() == ["hf/org/tiny/tiny.Q4_0.gguf"]
    row = client.row(ref)
    assert row is not None
    assert row.digest == hashlib.sha256(FILES["tiny.Q4_0.gguf"]).hexdigest()


def test_a_cut_download_is_continued_from_its_last_byte(client: Client, hub: Hub) -> None:
    hub.spoil(Fault("reset", at=0.4, times=1))
    outcome = client.fetch("hf:org/tiny")
    transfers = hub.recorder.transfers()
    assert [request.range for request in transfers] == [None, f"bytes={SIZE * 4 // 10}-"]
    assert sum(request.sent for request in transfers) == SIZE
    assert outcome.listener.retries == [
        "Error: Connection reset by peer",
        "Retrying download (attempt 2/3)... delay 1ms",
    ]


def test_wrong_bytes_are_refused_after_a_second_download(client: Client, hub: Hub) -> None:
    hub.spoil(Fault("flip", at=0.5))
    error = client.fetch("hf:org/tiny").error
    assert isinstance(error, ChecksumMismatch)
    assert error.details["expected"] == DIGEST
    assert len(hub.recorder.transfers()) == 2
    assert client.files() == []
    assert client.row("hf:org/tiny") is None


def test_a_token_opens_a_private_repository_and_stays_with_the_hub(client: Client, hub: Hub) -> None:
    assert client.fetch("hf:org/private:Q4_0", token=TOKEN).error is None
    by_server = {request.server: request.authorization for request in hub.requests}
    assert by_server == {"hub": f"Bearer {TOKEN}", "files": None}


@pytest.mark.parametrize(
    ("ref", "token", "code", "word"),
    [
        ("hf:org/private", False, "MODEL_ACCESS_DENIED", "private or missing"),
        ("hf:org/private", STRANGER, "MODEL_NOT_FOUND", "no such repository"),
        ("hf:org/gated", False, "MODEL_ACCESS_DENIED", "gated"),
        ("hf:org/gated", STRANGER, "MODEL_ACCESS_DENIED", "gated"),
        ("hf:org/gated/tiny.Q4_0.gguf", STRANGER, "MODEL_ACCESS_DENIED", "gated"),
        ("hf:org/tiny", "hf_unknown", "MODEL_ACCESS_DENIED", "token"),
        ("hf:org/absent", STRANGER, "MODEL_NOT_FOUND", "no such repository"),
        ("hf:org/absent/a.gguf", STRANGER, "MODEL_NOT_FOUND", "no such repository"),
        ("hf:org/tiny/absent.gguf", False, "MODEL_NOT_FOUND", "no such file"),
        ("hf:org/tiny:Q2_K", False, "MODEL_NOT_FOUND", "tiny.Q4_0.gguf, tiny.Q8_0.gguf"),
        ("hf:org/bad--name", False, "MODEL_NOT_FOUND", "no repository of such a name"),
    ],
)
def test_what_cannot_be_had_is_told_apart_at_once(
    client: Client, hub: Hub, ref: str, token: str | Literal[False], code: str, word: str
) -> None:
    outcome = client.fetch(ref, token)
    assert outcome.error is not None
    assert outcome.error.code == code
    assert word in outcome.error.message
    assert outcome.error.details == {"model_ref": ref}
    assert outcome.error.suggestion
    assert outcome.listener.retries == []
    assert hub.recorder.transfers() == []
    assert client.files() == []
    assert str(token) not in str(outcome.error.envelope())


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_but_not_for_ever(client: Client, hub: Hub, status: int) -> None:
    hub.spoil(Fault("status", status=status, times=1))
    assert client.fetch("hf:org/tiny").error is None
    hub.spoil(Fault("status", status=status))
    error = client.fetch("hf:org/tiny:Q4_0").error
    assert error is not None
    assert error.details == {"attempts": 3, "last_error": f"HTTP {status}"}


@pytest.mark.parametrize("ref", ["hf:org/tiny", "hf:org/tiny/tiny.Q4_0.gguf"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_whose_api_asks_for_patience_gets_it(client: Client, hub: Hub, ref: str, status: int) -> None:
    hub.spoil(Fault("status", status=status, retry_after=1, times=1, server="hub"))
    outcome = client.fetch(ref)
    assert outcome.error is None
    assert outcome.listener.retries == [
        f"Error: HTTP {status}",
        "Retrying download (attempt 2/3)... delay 1000ms",
    ]


@pytest.mark.parametrize("ref", ["hf:org/tiny", "hf:org/tiny/tiny.Q4_0.gguf"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "MODEL_ACCESS_DENIED"), (403, "MODEL_ACCESS_DENIED"), (404, "MODEL_NOT_FOUND")],
)
def test_a_refusal_of_the_api_without_a_reason_is_final_and_named(
    client: Client, hub: Hub, ref: str, status: int, code: str
) -> None:
    hub.spoil(Fault("status", status=status, server="hub"))
    outcome = client.fetch(ref)
    assert outcome.error is not None
    assert outcome.error.code == code
    assert outcome.listener.retries == []


def test_a_hub_that_stays_busy_is_given_up_with_its_status(client: Client, hub: Hub) -> None:
    hub.spoil(Fault("status", status=503, server="hub"))
    error = client.fetch("hf:org/tiny").error
    assert error is not None
    assert error.details == {"attempts": 3, "last_error": "HTTP 503"}


def test_an_expired_link_of_the_content_server_is_renewed_and_no_refusal(client: Client, hub: Hub) -> None:
    hub.spoil(Fault("status", status=403, times=1))
    outcome = client.fetch("hf:org/tiny")
    assert outcome.error is None
    assert outcome.listener.retries[0] == "Error: HTTP 403 from the content server"


def test_a_hub_out_of_reach_is_a_failed_download_with_its_reason(client: Client, hub: Hub) -> None:
    hub.stop()
    error = client.fetch("hf:org/tiny").error
    assert error is not None
    assert error.details == {"attempts": 3, "last_error": "Connection refused"}


def test_the_users_cache_is_used_in_place_and_not_copied(client: Client, hub: Hub) -> None:
    cached = client.fill_cache()
    assert client.fetch("hf:org/tiny").path == cached
    assert cached.read_bytes() == CONTENT
    assert hub.recorder.transfers() == []
    assert not client.models_dir.exists()
    row = client.row("hf:org/tiny")
    assert row is not None
    assert (row.local_path, row.size_bytes, row.digest) == (cached, SIZE, DIGEST)


def test_an_outdated_cached_file_is_not_used(client: Client, hub: Hub) -> None:
    client.fill_cache()
    (hub.root / "org/tiny/tiny.Q8_0.gguf").write_bytes(FILES["tiny.Q4_0.gguf"])
    path = client.fetch("hf:org/tiny").path
    assert path == client.models_dir / FETCHED
    assert path.read_bytes() == FILES["tiny.Q4_0.gguf"]


def test_a_damaged_cached_file_is_noticed_and_downloaded_instead(client: Client) -> None:
    blob = client.fill_cache().resolve()
    blob.chmod(0o644)
    blob.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    outcome = client.fetch("hf:org/tiny")
    assert outcome.path == client.models_dir / FETCHED
    assert any("damaged" in human for _, human in outcome.listener.narration)


def test_the_cache_serves_while_the_hub_is_out_of_reach(client: Client, hub: Hub) -> None:
    cached = client.fill_cache()
    hub.stop()
    assert client.fetch("hf:org/tiny").path == cached


def test_a_file_larger_than_the_disk_is_refused_before_any_byte(client: Client, hub: Hub) -> None:
    hub.stated["org/tiny/tiny.Q8_0.gguf"] = Stated(size=2**60)
    error = client.fetch("hf:org/tiny").error
    assert isinstance(error, DiskFull)
    assert error.details["required"] == 2**40
    assert 0 < error.details["available"] < 2**40
    assert hub.recorder.transfers() == []
    assert client.files() == []


class Child:
    """Fetches as the hive does: in a child process with the hub client's settings in its environment."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.place = Place(root)
        self._hub = hub

    def fetch(self, ref: str, **extra: str) -> Provisioner:
        env = self.place.environment({"HF_ENDPOINT": self._hub.url, **extra})
        return run_provisioner(self.place.fetch_args(ref), env)

    def fill_cache(self) -> Path:
        """The file in the cache below the child's HF_HOME."""
        path = hf_hub_download(
            "org/tiny",
            "tiny.Q8_0.gguf",
            endpoint=self._hub.url,
            cache_dir=Path(self.place.environment()["HF_HOME"]) / "hub",
            token=False,
        )
        self._hub.recorder.clear()
        return Path(path)


@pytest.fixture
def child(tmp_path: Path, hub: Hub) -> Child:
    return Child(tmp_path, hub)


def test_endpoint_and_token_come_from_the_environment(child: Child, hub: Hub) -> None:
    denied = child.fetch("hf:org/private:Q4_0").final["error"]
    assert denied["code"] == "MODEL_ACCESS_DENIED"
    assert child.fetch("hf:org/private:Q4_0", HF_TOKEN=TOKEN).final["stage"] == "complete"
    assert len(hub.recorder.transfers()) == 1


def test_the_cache_may_be_named_apart_from_its_home(child: Child, hub: Hub, tmp_path: Path) -> None:
    cached = child.fill_cache()
    apart = tmp_path / "elsewhere"
    (Path(child.place.environment()["HF_HOME"]) / "hub").rename(apart)
    final = child.fetch("hf:org/tiny", HF_HUB_CACHE=str(apart)).final
    assert final["local_path"] == str(apart / cached.relative_to(cached.parents[3]))
    assert hub.recorder.transfers() == []
    assert child.place.files() == []


@pytest.mark.parametrize("ref", ["hf:org/tiny", "hf:org/tiny/tiny.Q8_0.gguf"])
def test_offline_a_cached_file_is_used_without_a_request(child: Child, hub: Hub, ref: str) -> None:
    cached = child.fill_cache()
    assert child.fetch(ref, HF_HUB_OFFLINE="1").final["local_path"] == str(cached)
    assert hub.requests == []


def test_offline_an_uncached_file_is_a_clear_error_without_a_request(child: Child, hub: Hub) -> None:
    child.fill_cache()
    error = child.fetch("hf:org/tiny:Q4_0", HF_HUB_OFFLINE="1").final["error"]
    assert error["code"] == "MODEL_NOT_FOUND"
    assert "offline" in error["message"]
    assert "HF_HUB_OFFLINE" in error["suggestion"]
    assert hub.requests == []
