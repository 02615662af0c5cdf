"""Downloads and conversions through a real hive, its provisioner and a hub that speaks the hub's protocol."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from rbee.core.client import ServiceClient
from rbee.core.errors import DownloadNotFound, InvalidModelRef, InvalidRequest, ModelNotFound
from support.daemons import Daemon, environment, wait_until
from support.file_sending import Fault, Request
from support.gguf_factory import TinyModel
from support.hub_server import Hub
from support.processes import arguments

FIVE_MB = 5_242_880
KEY = "a-fleet-key-for-this-test"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def ref(hub: Hub, request: pytest.FixtureRequest) -> Iterator[str]:
    """A repository with one model of exactly 5 MB, for this test alone."""
    repo = f"org/{abs(hash(request.node.name))}"
    path = hub.root / repo / "five.Q4_0.gguf"
    path.parent.mkdir(parents=True)
    TinyModel().write(path)
    padding = FIVE_MB - path.stat().st_size
    with path.open("ab") as file:
        file.write(os.urandom(padding))
    yield f"hf:{repo}"
    hub.spoil()


def spoil(hub: Hub, ref: str, kind: Any, **how: Any) -> None:
    """Let this model's transfers go wrong; downloads of other tests may still be under way."""
    hub.spoil(Fault(kind, name=f"{ref.removeprefix('hf:')}/five.Q4_0.gguf", **how))


def transfers(hub: Hub, ref: str) -> list[Request]:
    """The requests for the model's content so far."""
    return hub.recorder.transfers(ref.removeprefix("hf:"))


class Node:
    """A hive of its own, started when needed and again after its end."""

    def __init__(self, home: Path, hub: Hub | None = None) -> None:
        hub_url = hub.url if hub is not None else "http://127.0.0.1:9"
        self.env = environment(
            home, {"HF_ENDPOINT": hub_url, "HF_HUB_DISABLE_TELEMETRY": "1", "RBEE_API_KEY": KEY}
        )
        self.models_dir = home / ".rbee" / "models"
        self.log = home / ".rbee" / "logs" / "rbee-hive.log"

    def __enter__(self) -> "Node":
        self.daemon = Daemon("rbee-hive", ["daemon", "--addr", "127.0.0.1:0"], self.env)
        self.client = ServiceClient(str(self.daemon.url), api_key=KEY, timeout_s=20)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.daemon.stop()

    def download(self, ref: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.post("/v1/models/download", {"model_ref": ref})
        return answer

    def follow(self, download_id: str) -> list[dict[str, Any]]:
        """All events of a download's stream; narration as its text, ``[DONE]`` as an empty one."""
        path = "/v1/models/download/progress"
        with self.client.stream("GET", path, params={"id": download_id}, read_timeout_s=30) as stream:
            return [_shown(event.name, event) for event in stream]

    def model(self, ref: str) -> dict[str, Any]:
        """The catalog's record of a model, empty when it has none."""
        listed = self.client.get("/v1/models")["models"]
        return next((record for record in listed if record["model_ref"] == ref), {})

    def received(self) -> int:
        """Bytes of downloads that are not complete."""
        return sum(path.stat().st_size for path in self.models_dir.rglob("*.partial"))

    def provisioners(self) -> list[psutil.Process]:
        """The provisioner processes below this hive."""
        return [p for p in self.daemon.descendants() if "rbee.models.provisioner" in arguments(p)]


def _data(event: Any) -> dict[str, Any]:
    return _shown(event.name, event)


def _shown(name: str, event: Any) -> dict[str, Any]:
    if event.is_done_marker:
        return {}
    data: dict[str, Any] = event.json()
    return {"narration": data["human"]} if name == "narration" else data


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("home"), hub) as node:
        yield node
        wait_until(lambda: not node.provisioners(), 30, "the end of all provisioners")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory, embedded_gguf: Path) -> Path:
    """The embedded model under a path of its own: its conversions are these tests' alone."""
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    path.symlink_to(embedded_gguf)
    return path


def measured(node: Node, ref: str) -> list[dict[str, Any]]:
    """All events of a comparison with float32."""
    body = {"model_ref": ref}
    with node.client.stream("POST", "/v1/models/quality", body=body, read_timeout_s=60) as stream:
        return [_shown(event.name, event) for event in stream]


def of_stage(events: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("stage") == stage]


def test_a_model_comes_from_the_hub_and_is_in_the_catalog_afterwards(node: Node, hub: Hub, ref: str) -> None:
    spoil(hub, ref, "throttle", bytes_per_s=4_000_000)
    started = node.download(ref)
    assert started["local_path"] is None
    times: list[float] = []
    path = "/v1/models/download/progress"
    with node.client.stream("GET", path, params={"id": started["download_id"]}) as stream:
        events = []
        for event in stream:
            times.append(time.monotonic())
            events.append(_shown(event.name, event))
    downloading = of_stage(events, "downloading")
    done = [event["bytes_downloaded"] for event in downloading]
    assert done == sorted(done)
    assert done[-1] == FIVE_MB
    assert {event["bytes_total"] for event in downloading} == {FIVE_MB}
    assert all(event["speed_mbps"] > 0 for event in downloading if event["bytes_downloaded"])
    assert len(downloading) >= 3
    assert all(later - earlier > 0.9 for earlier, later in zip(times, times[14:], strict=False))
    record = node.model(ref)
    assert events[-2:] == [{"stage": "complete", "local_path": record["local_path"]}, {}]
    content = Path(record["local_path"]).read_bytes()
    assert record["id"] == "five.Q4_0"
    assert (record["provider"], record["reference"], record["size_bytes"]) == ("hf", ref[3:], FIVE_MB)
    assert record["digest"] == hashlib.sha256(content).hexdigest()
    assert record["architecture"] == "llama"

    asked = len(hub.requests)
    assert node.download(ref) == {"download_id": "cached", "local_path": record["local_path"]}
    assert len(hub.requests) == asked, "a model that is here needs no hub"
    assert node.follow(started["download_id"])[-2]["stage"] == "complete", "a finished id stays readable"


def test_a_reset_is_told_and_the_rest_is_fetched_by_range(node: Node, hub: Hub, ref: str) -> None:
    spoil(hub, ref, "reset", at=0.4, times=1)
    events = node.follow(node.download(ref)["download_id"])
    told = [event["narration"] for event in events if "narration" in event]
    at = told.index("Error: Connection reset by peer")
    assert told[at + 1] == "Retrying download (attempt 2/6)... delay 100ms"
    before = events[: events.index({"narration": told[at]})]
    assert of_stage(before, "downloading")[-1]["bytes_downloaded"] == FIVE_MB * 2 // 5
    assert [request.range for request in transfers(hub, ref)] == [None, f"bytes={FIVE_MB * 2 // 5}-"]
    assert events[-2]["stage"] == "complete"


def test_a_download_that_cannot_succeed_ends_with_its_error_and_leaves_no_row(node: Node, ref: str) -> None:
    (error,) = of_stage(node.follow(node.download(f"{ref}:Q8_0")["download_id"]), "error")
    assert error["error"]["code"] == "MODEL_NOT_FOUND"
    assert error["error"]["details"] == {"model_ref": f"{ref}:Q8_0"}
    assert node.model(f"{ref}:Q8_0") == {}


def test_requests_for_one_model_share_one_transfer_that_outlives_its_readers(
    node: Node, hub: Hub, ref: str
) -> None:
    spoil(hub, ref, "throttle", bytes_per_s=5_000_000)
    first = node.download(ref)["download_id"]
    path = "/v1/models/download/progress"
    with node.client.stream("GET", path, params={"id": first}) as stream:
        left_at = next(event for event in map(_data, stream) if event.get("bytes_downloaded"))
    assert node.download(ref)["download_id"] == first
    results: list[list[dict[str, Any]]] = []
    readers = [threading.Thread(target=lambda: results.append(node.follow(first))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert [events[-2]["stage"] for events in results] == ["complete"] * 3
    for events in results:
        done = [event["bytes_downloaded"] for event in of_stage(events, "downloading")]
        assert done == sorted(done)
        assert done[0] >= left_at["bytes_downloaded"], "who comes back sees the bytes so far first"
    assert len(transfers(hub, ref)) == 1


def test_the_fleet_key_does_not_reach_the_provisioner(node: Node, hub: Hub, ref: str) -> None:
    spoil(hub, ref, "throttle", bytes_per_s=1_000_000)
    node.download(ref)
    child = wait_until(node.provisioners, 10, "a provisioner")[-1]
    names = wait_until(child.environ, 5, "its environment")
    assert names["HF_ENDPOINT"] == hub.url
    assert KEY not in names.values()
    assert os.getpgid(child.pid) == child.pid, "it leads a group of its own"


def test_a_hive_that_ends_takes_its_provisioner_along_and_the_next_one_goes_on(
    tmp_path: Path, hub: Hub, ref: str
) -> None:
    node = Node(tmp_path / "home", hub)
    spoil(hub, ref, "throttle", bytes_per_s=2_000_000, times=1)
    with node:
        started = node.download(ref)["download_id"]
        wait_until(lambda: node.received() > FIVE_MB // 5, 20, "a fifth of the file")
        (child,) = node.provisioners()
        with node.client.stream("GET", "/v1/models/download/progress", params={"id": started}) as stream:
            began = time.monotonic()
            node.daemon.process.send_signal(signal.SIGTERM)
            events = [_shown(event.name, event) for event in stream]
        assert node.daemon.process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert not child.is_running()
        (error,) = of_stage(events, "error") or [event for event in events if "error" in event]
        assert error["error"]["code"] == "SERVICE_UNAVAILABLE"
        assert events[-1] == {}
    received = node.received()
    with node:
        assert node.follow(node.download(ref)["download_id"])[-2]["stage"] == "complete"
    first, second = transfers(hub, ref)
    assert first.sent >= received
    assert (second.range, second.sent) == (f"bytes={received}-", FIVE_MB - received)


def test_after_a_hive_was_killed_the_next_one_fetches_only_the_missing_bytes(
    tmp_path: Path, hub: Hub, ref: str
) -> None:
    node = Node(tmp_path / "home", hub)
    spoil(hub, ref, "hold", at=0.4, times=1)
    kept = FIVE_MB * 2 // 5
    with node:
        node.download(ref)
        wait_until(lambda: node.received() == kept, 20, "two fifths of the file")
        killed = [psutil.Process(node.daemon.pid), *node.daemon.descendants()]
        children = node.provisioners()
        for process in killed:
            if process not in children:
                process.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(child.is_running() for child in children), 10, "the provisioner's end")
    assert node.received() == kept
    with node:
        assert node.model(ref) == {}
        events = node.follow(node.download(ref)["download_id"])
        record = node.model(ref)
    first, second = transfers(hub, ref)
    assert (first.range, second.range) == (None, f"bytes={kept}-")
    assert second.sent == FIVE_MB - kept, "the server's log: nothing was sent twice"
    assert of_stage(events, "downloading")[0]["bytes_downloaded"] >= kept
    assert events[-2] == {"stage": "complete", "local_path": record["local_path"]}
    served = hub.root / ref.removeprefix("hf:") / "five.Q4_0.gguf"
    assert Path(record["local_path"]).read_bytes() == served.read_bytes()


def test_the_provisioner_of_a_hive_that_was_killed_ends(tmp_path: Path, hub: Hub, ref: str) -> None:
    with Node(tmp_path / "home", hub) as node:
        spoil(hub, ref, "throttle", bytes_per_s=500_000)
        node.download(ref)
        children = wait_until(node.provisioners, 10, "a provisioner")
        serving = [p for p in node.daemon.descendants() if p not in children]
        for process in (node.daemon.process, *serving):
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(child.is_running() for child in children), 5, "its end")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "was killed by the system (SIGKILL), most likely because memory ran out"),
        (signal.SIGSEGV, "was ended by SIGSEGV"),
    ],
)
def test_a_download_process_that_dies_is_told_with_the_cause(
    node: Node, hub: Hub, ref: str, number: int, reason: str
) -> None:
    spoil(hub, ref, "throttle", bytes_per_s=500_000)
    started = node.download(ref)["download_id"]
    (child,) = wait_until(node.provisioners, 10, "a provisioner")
    wait_until(lambda: any(ref[3:] in request.path for request in hub.requests), 10, "its first request")
    child.send_signal(number)
    (error,) = of_stage(node.follow(started), "error")
    assert error["error"]["code"] == "DOWNLOAD_FAILED"
    assert reason in error["error"]["details"]["last_error"]
    assert node.client.get("/v1/health")["status"] == "alive"
    hub.spoil()
    assert node.follow(node.download(ref)["download_id"])[-2]["stage"] == "complete"


def test_a_conversion_that_is_killed_is_told_as_a_lack_of_memory_and_health_answers_meanwhile(
    node: Node, model_file: Path
) -> None:
    spawned = node.client.post("/v1/workers/spawn", {"model_ref": f"file:{model_file}"})
    (child,) = wait_until(node.provisioners, 10, "a provisioner")
    waits = []
    with requests.Session() as session:
        for _ in range(50):
            began = time.monotonic()
            assert session.get(f"{node.daemon.url}/v1/health", timeout=5).status_code == 200
            waits.append(time.monotonic() - began)
    child.kill()
    path = f"/v1/workers/{spawned['worker_id']}/narration"
    with node.client.stream("GET", path, read_timeout_s=20) as stream:
        errors = [event.json()["error"] for event in stream if '"error":' in event.data]
    assert [error["code"] for error in errors] == ["VRAM_EXHAUSTED"]
    assert "killed by the system" in errors[0]["message"]
    assert errors[0]["details"]["resource"] == "ram"
    assert errors[0]["details"]["required"] > 150
    assert node.client.get("/v1/workers/list") == {"workers": []}
    assert sorted(waits)[45] < 0.25


def test_bad_requests_for_models_are_refused_by_name(node: Node, ref: str) -> None:
    with pytest.raises(InvalidModelRef):
        node.download("tinyllama")
    with pytest.raises(DownloadNotFound):
        node.client.get("/v1/models/download/progress", params={"id": "download-none"})
    with pytest.raises(InvalidRequest):
        node.client.get("/v1/models/download/progress")
    with pytest.raises(ModelNotFound):
        node.client.post("/v1/models/remove", {"model_ref": ref})


def test_a_pulled_model_can_be_removed(node: Node, ref: str) -> None:
    node.follow(node.download(ref)["download_id"])
    path = Path(node.model(ref)["local_path"])
    assert node.client.post("/v1/models/remove", {"model_ref": ref}) == {"message": f"Model '{ref}' removed"}
    assert not path.exists()
    assert node.model(ref) == {}


def test_capabilities_tell_this_machine(node: Node) -> None:
    told = node.client.get("/v1/capabilities")
    assert told["devices"]["cpu"] == 1
    assert told["backends"][-1] == "cpu"
    assert 0 < told["ram_available_mb"] <= told["ram_total_mb"]
    assert told["disk_available_mb"] > 0
    assert len(told["vram"]) == told["devices"].get("cuda", 0)


def test_the_quality_of_a_conversion_is_measured_on_the_node(node: Node, tmp_path: Path) -> None:
    source = TinyModel(layers=3, width=256, inner=1024, head_dim=64, spread=0.1).write(tmp_path / "tiny.gguf")
    ref = f"file:{source}"
    node.download(ref)
    events = measured(node, ref)
    (figures,) = of_stage(events, "measured")
    assert figures["compute_type"] == "int8"
    assert 0 < figures["kl_nats"] < 0.1
    assert 0.5 < figures["same_top"] <= 1
    assert figures["positions"] == sum(text["positions"] for text in figures["texts"])
    assert figures["perplexity"] == pytest.approx(figures["reference_perplexity"], rel=0.2)
    assert of_stage(events, "calibrating")[-1] == {
        "stage": "calibrating",
        "layers_done": 3,
        "layers_total": 3,
    }
    assert of_stage(events, "measuring")[-1]["layers_done"] == 3
    assert events[-2:] == [{"stage": "complete"}, {}]
    again = measured(node, ref)
    assert of_stage(again, "measured") == [figures]
    assert not of_stage(again, "converting"), "what is converted is not converted again"


def test_a_model_that_is_not_here_has_no_quality(node: Node) -> None:
    events = measured(node, "hf:org/nothing-here")
    assert events[-2]["stage"] == "error"
    assert events[-2]["error"]["code"] == "MODEL_NOT_FOUND"
