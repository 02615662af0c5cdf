"""`rbee-keeper models` against a real queen, its hive and a hub: what is known, checked, freed and shared."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rbee.core.client import ServiceClient
from rbee.models.conversion import convert
from rbee.models.converted_folders import RECIPE
from support.file_sending import Fault
from support.gguf_factory import TinyModel
from support.hives import QUICK, HiveNode, ctranslate2_folder
from support.hub_server import Hub
from support.keeper import Outcome, RunningKeeper, run_keeper
from support.queens import QueenUnderTest, start_queen

FIVE_MB = 5_242_880


@dataclass
class Fleet:
    """A queen that stays, with its local hive, and a hub."""

    queen: QueenUnderTest
    hub: Hub

    def keeper(self, *args: str) -> Outcome:
        return run_keeper(self.queen.home, "--queen-url", self.queen.url, "models", *args)

    def running(self, *args: str) -> RunningKeeper:
        return RunningKeeper(self.queen.home, "--queen-url", self.queen.url, "models", *args)

    def json(self, *args: str) -> dict[str, Any]:
        done = self.keeper(*args, "--json")
        assert done.code == 0, done
        return dict(json.loads(done.stdout))

    @property
    def models_dir(self) -> Path:
        return self.queen.home / ".rbee" / "models"

    def model(self, name: str) -> Path:
        """A model of exactly 5 MB in a repository of its own on the hub."""
        path = self.hub.root / "org" / name / "five.Q4_0.gguf"
        path.parent.mkdir(parents=True)
        TinyModel().write(path)
        with path.open("ab") as file:
            file.write(os.urandom(FIVE_MB - path.stat().st_size))
        return path

    def pulled(self, name: str) -> tuple[str, Path]:
        """The same, fetched: its reference and where it lies."""
        self.model(name)
        done = self.keeper("pull", f"hf:org/{name}")
        assert done.code == 0, done
        return f"hf:org/{name}", Path(done.stdout.strip())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("fleet")
    with Hub(root / "hub") as hub:
        queen = start_queen(root / "home", env={"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"})
        try:
            yield Fleet(queen, hub)
        finally:
            queen.daemon.stop()


def test_show_tells_all_that_is_known_of_a_model(fleet: Fleet) -> None:
    ref, path = fleet.pulled("shown")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = convert(path, fleet.models_dir, "int8", sha256=digest, on_progress=lambda _done, _total: None)
    told = fleet.json("show", ref)
    assert told["model_ref"] == ref
    assert told["digest"] == digest
    assert told["revision"] == fleet.hub.commit("org/shown")
    assert (told["size_bytes"], told["files"]) == (FIVE_MB, [str(path)])
    assert (told["architecture"], told["context_length"], told["last_used_unix"]) == ("llama", 512, None)
    (conversion,) = told["conversions"]
    assert (conversion["compute_type"], conversion["path"]) == ("int8", str(folder))
    assert conversion["usable"] is True
    assert conversion["size_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    text = fleet.keeper("show", ref).stdout.splitlines()
    assert text[0] == ref
    assert f"  Digest: sha256:{digest}" in text
    assert f"  Revision: {told['revision']}" in text
    assert f"  Size: 5.0 MB ({FIVE_MB} bytes)" in text
    assert "  Last used: never" in text
    assert any(line.startswith("    int8: ") for line in text)


@pytest.mark.parametrize("command", ["show", "verify"])
def test_an_unknown_model_is_told_as_such(fleet: Fleet, command: str) -> None:
    done = fleet.keeper(command, "hf:org/never-fetched")
    assert done.code == 1
    assert "not in the catalog" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_shows_progress_and_finds_an_intact_model_ok(fleet: Fleet) -> None:
    ref, _ = fleet.pulled("intact")
    done = fleet.keeper("verify", ref)
    assert (done.code, done.stdout) == (0, f"{ref}: ok\n")
    assert done.bars[-1] == "Verifying models... [████████████████████] 100% (5.0 MB / 5.0 MB)"
    assert fleet.json("verify", ref)["models"][0]["ok"] is True


def test_a_damaged_model_is_exit_1_and_what_is_advised_repairs_it(fleet: Fleet) -> None:
    ref, path = fleet.pulled("damaged")
    fleet.keeper("pull", f"{ref}:Q4_0")  # a second reference keeps the file when the first is removed
    with path.open("r+b") as file:
        file.seek(FIVE_MB - 9)
        file.write(b"x")
    done = fleet.keeper("verify", ref)
    assert done.code == 1
    assert f"{ref}: damaged" in done.stdout
    assert f"{path}: its content is not what was fetched" in done.stdout
    assert f"Error: 1 of 1 models is damaged: {ref}" in done.stderr
    remedy = f"rbee-keeper models remove {ref} && rbee-keeper models pull {ref}"
    assert f"Suggestion: Fetch it again: {remedy}" in done.stderr
    as_json = fleet.keeper("verify", ref, "--json")
    assert as_json.code == 1
    report = json.loads(as_json.stdout)
    assert report["error"]["code"] == "MODEL_DAMAGED"
    assert [verdict["ok"] for verdict in report["models"]] == [False]
    for step in remedy.split(" && "):
        assert fleet.keeper(*step.split()[2:]).code == 0
    assert fleet.keeper("verify", ref).code == 0
    assert fleet.keeper("verify", f"{ref}:Q4_0").code == 0


def test_verify_of_all_models_names_the_damaged_among_them(fleet: Fleet) -> None:
    good, _ = fleet.pulled("good")
    bad, path = fleet.pulled("bad")
    path.write_bytes(path.read_bytes()[:-1])
    done = fleet.keeper("verify", "--json")
    report = {verdict["model_ref"]: verdict["ok"] for verdict in json.loads(done.stdout)["models"]}
    assert (done.code, report[good], report[bad]) == (1, True, False)
    assert fleet.keeper("remove", bad).code == 0


def test_a_file_deleted_behind_the_catalogs_back_is_noticed_and_fetched_again(fleet: Fleet) -> None:
    ref, path = fleet.pulled("deleted")
    path.unlink()
    assert fleet.keeper("show", ref).code == 1
    assert ref not in fleet.keeper("list").stdout
    assert fleet.keeper("pull", ref).code == 0
    assert path.stat().st_size == FIVE_MB


def test_prune_says_what_goes_and_how_much_that_frees(fleet: Fleet) -> None:
    ref, path = fleet.pulled("kept")
    left = path.with_name("other.gguf.partial")
    left.write_bytes(bytes(3_145_728))
    orphan = fleet.models_dir / "ct2" / f"{'ab' * 32}-int8"
    orphan.mkdir(parents=True)
    (orphan / "model.bin").write_bytes(bytes(1_048_576))
    (orphan / "rbee.json").write_text(json.dumps({"recipe": RECIPE, "files": {"model.bin": 1_048_576}}))
    dry = fleet.keeper("prune", "--dry-run")
    assert dry.code == 0
    assert f"Would remove partial download {left} (3.0 MB): its download does not go on" in dry.stdout
    assert f"Would remove conversion {orphan} (1.0 MB): its model is no longer here" in dry.stdout
    assert left.exists()
    assert orphan.exists()
    told = fleet.json("prune")
    assert {item["path"] for item in told["removed"]} >= {str(left), str(orphan)}
    assert told["bytes_freed"] == sum(item["size_bytes"] for item in told["removed"]) >= 4 * 1_048_576
    assert not left.exists()
    assert not orphan.exists()
    assert path.exists()
    assert fleet.keeper("prune").stdout == "Nothing to remove\n"
    assert "0.0 MB" not in fleet.keeper("show", ref).stdout.splitlines()[3]


def test_prune_of_unused_models_keeps_those_used_within_the_days(fleet: Fleet) -> None:
    ref, path = fleet.pulled("fresh")
    assert ref not in fleet.keeper("prune", "--unused-for", "1").stdout
    done = fleet.keeper("prune", "--unused-for", "0", "--dry-run")
    assert f"Would remove model {ref} (5.0 MB): not used for long" in done.stdout
    assert path.exists()
    for bad in ("-1", "nan", "many"):
        assert fleet.keeper("prune", "--unused-for", bad).code == 2


def test_prune_leaves_a_running_download_alone(fleet: Fleet) -> None:
    fleet.model("running")
    fleet.hub.spoil(Fault("hold", at=0.4, times=1, name="running/five.Q4_0.gguf"))
    fleet.hub.recorder.released.clear()
    with fleet.running("pull", "hf:org/running") as keeper:
        keeper.wait_for("40%")
        assert "running" not in fleet.keeper("prune", "--unused-for", "0", "--dry-run").stdout
        assert "running" not in fleet.keeper("prune").stdout
        fleet.hub.recorder.released.set()
        done = keeper.outcome()
    assert done.code == 0
    assert Path(done.stdout.strip()).stat().st_size == FIVE_MB


def test_a_keeper_that_leaves_does_not_stop_the_download_and_the_next_attaches(fleet: Fleet) -> None:
    fleet.model("shared")
    fleet.hub.recorder.released.clear()
    fleet.hub.spoil(Fault("hold", at=0.4, times=1, name="shared/five.Q4_0.gguf"))
    with fleet.running("pull", "hf:org/shared") as first:
        first.wait_for("40%")
        first.signal(signal.SIGINT)
        assert first.outcome().code == 130
    with fleet.running("pull", "hf:org/shared") as second:
        second.wait_for("40%")
        fleet.hub.recorder.released.set()
        done = second.outcome()
    assert done.code == 0
    assert "40% (2.0 MB / 5.0 MB)" in done.bars[0], "the bytes so far come first"
    assert done.bars[-1].startswith("Downloading model... [████████████████████] 100% (5.0 MB / 5.0 MB) @ ")
    (transfer,) = fleet.hub.recorder.transfers("shared")
    assert transfer.sent == FIVE_MB


def test_bad_bodies_are_refused_by_field(fleet: Fleet) -> None:
    client = ServiceClient(fleet.queen.url, timeout_s=20)
    bodies: dict[str, list[Mapping[str, object]]] = {
        "/v2/models/prune": [{"unused_for_days": -1}, {"unused_for_days": "x"}, {"dry_run": 2}, {"nod": 1}],
        "/v2/models/verify": [{"model": "nonsense"}, {"model": 7}, {"node": "No Such"}],
    }
    for path, wrong in bodies.items():
        for body in wrong:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - two codes are right
                client.post(path, body)
            assert getattr(caught.value, "http_status", None) == 400, (path, body)
    for query in ({}, {"model": "nonsense"}):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            client.get("/v2/models/show", params=query)
        assert getattr(caught.value, "http_status", None) == 400
    client.close()


def test_a_model_that_a_worker_has_is_never_pruned(tmp_path: Path) -> None:
    ref = ctranslate2_folder(tmp_path / "served")
    with HiveNode(tmp_path, timing=QUICK) as hive:
        hive.idle_worker(ref)
        answer = hive.call("POST", "/v1/models/prune", {"unused_for_days": 0})
        assert answer.json() == {"removed": [], "bytes_freed": 0, "dry_run": False}
        (worker,) = hive.workers()
        assert hive.call("GET", f"/v1/models/show?model_ref={ref}").json()["workers"] == [worker["id"]]
