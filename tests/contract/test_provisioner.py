"""What every provisioner promises to the model store, held by the child process and the fake."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import pytest

from rbee.core.errors import ModelNotFound, RbeeError, ServiceUnavailable
from rbee.core.references import ModelRef, parse_model_ref
from rbee.core.settings import Settings
from rbee.hive.adapters.provisioner_process import ProvisionerProcess
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.model_ports import Provisioner
from rbee.models.catalog import Catalog
from rbee.testing.fake_provisioner import FakeProvisioner
from support.daemons import environment
from support.file_sending import Fault
from support.gguf_factory import TinyModel
from support.hub_server import Hub

REF = parse_model_ref("hf:org/tiny")
MISSING = parse_model_ref("hf:org/tiny:Q8_0")


@dataclass
class Case:
    """A provisioner and where it works."""

    provisioner: Provisioner
    catalog_db: Path
    hub: Hub

    def hold(self) -> None:
        """Let the work that begins now take for ever."""
        self.hub.spoil(Fault("stall", at=0.5))
        if isinstance(self.provisioner, FakeProvisioner):
            self.provisioner.gate.clear()

    def has_begun(self) -> bool:
        """Whether the work that is held has begun."""
        if isinstance(self.provisioner, FakeProvisioner):
            return bool(self.provisioner.fetches)
        return any(request.server == "files" for request in self.hub.requests)

    def miss(self) -> None:
        """The model asked for next does not exist."""
        if isinstance(self.provisioner, FakeProvisioner):
            self.provisioner.error = ModelNotFound(str(MISSING))


@pytest.fixture(params=["process", "fake"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    source = tmp_path / "hub" / "org" / "tiny" / "tiny.Q4_0.gguf"
    source.parent.mkdir(parents=True)
    TinyModel(layers=4).write(source)
    models_dir, catalog_db = tmp_path / "models", tmp_path / "models.db"
    models_dir.mkdir()
    with Hub(tmp_path / "hub") as hub:
        provisioner: Provisioner
        if request.param == "process":
            paths = {"models_dir": str(models_dir), "catalog_db": str(catalog_db)}
            settings = Settings.model_validate({"paths": paths, "timing": {"download_attempts": 1}})
            provisioner = ProvisionerProcess(settings, environment(tmp_path, {"HF_ENDPOINT": hub.url}))
        else:
            provisioner = fake(source, models_dir, catalog_db)
        yield Case(provisioner, catalog_db, hub)
        provisioner.close()


def fake(source: Path, models_dir: Path, catalog_db: Path) -> FakeProvisioner:
    def arrive(ref: ModelRef) -> Path:
        path = Path(shutil.copy(source, models_dir / "tiny.gguf"))
        Catalog(catalog_db).add(ref, path, path.stat().st_size, "0" * 64)
        return path

    converted = models_dir / "converted"
    converted.mkdir()
    (converted / "model.bin").touch()
    made = FakeProvisioner(arrive, converted)
    made.events = [
        {"event": "narration", "data": {"actor": "model-provisioner", "action": "x", "human": "working"}},
        {"event": "progress", "data": {"stage": "downloading", "bytes_downloaded": 1, "bytes_total": 1}},
    ]
    return made


def test_a_fetched_model_is_on_disk_and_in_the_catalog(case: Case) -> None:
    events: list[dict[str, Any]] = []
    path = case.provisioner.fetch(REF, events.append)
    row = Catalog(case.catalog_db).find(REF)
    assert row is not None
    assert (row.local_path, row.size_bytes) == (path, path.stat().st_size)
    assert {event["event"] for event in events} == {"narration", "progress"}
    assert all(isinstance(event["data"], dict) for event in events)


def test_a_failure_is_an_error_of_ours(case: Case) -> None:
    case.miss()
    with pytest.raises(RbeeError) as failure:
        case.provisioner.fetch(MISSING, lambda _event: None)
    assert failure.value.code == "MODEL_NOT_FOUND"
    assert Catalog(case.catalog_db).find(MISSING) is None


def test_a_converted_model_is_a_folder_that_the_engine_loads(case: Case) -> None:
    path = case.provisioner.fetch(REF, lambda _event: None)
    local = LocalModel(path, ModelFormat.GGUF, path.stat().st_size)
    events: list[dict[str, Any]] = []
    folder = case.provisioner.convert(local, REF, "int8", events.append)
    assert (folder / "model.bin").is_file()
    assert any(event["event"] == "progress" for event in events)


def test_a_measurement_tells_its_figures_as_the_last_event(case: Case) -> None:
    path = case.provisioner.fetch(REF, lambda _event: None)
    local = LocalModel(path, ModelFormat.GGUF, path.stat().st_size)
    events: list[dict[str, Any]] = []
    case.provisioner.measure_quality(local, REF, "int8", events.append)
    assert len(events) > 1
    assert events[-1]["event"] == "progress"
    assert events[-1]["data"]["stage"] == "measured"
    assert events[-1]["data"]["compute_type"] == "int8"


def test_closing_ends_the_work_under_way_and_refuses_more(case: Case) -> None:
    case.hold()
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            case.provisioner.fetch(REF, lambda _event: None)
        except RbeeError as error:
            outcome.append(error)

    working = gevent.spawn(work)
    deadline = time.monotonic() + 20
    while not case.has_begun() and time.monotonic() < deadline:
        gevent.sleep(0.01)
    assert not working.dead
    began = time.monotonic()
    case.provisioner.close()
    working.join(5)
    assert time.monotonic() - began < 4
    assert [type(error) for error in outcome] == [ServiceUnavailable]
    with pytest.raises(ServiceUnavailable):
        case.provisioner.fetch(REF, lambda _event: None)


def test_a_child_that_cannot_even_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    environ = {**environment(tmp_path), "PYTHONHOME": "/nonexistent"}
    settings = Settings.model_validate({"paths": {"models_dir": str(tmp_path)}})
    with pytest.raises(RbeeError) as failure:
        ProvisionerProcess(settings, environ).fetch(REF, lambda _event: None)
    assert failure.value.code == "DOWNLOAD_FAILED"
    assert "ended with exit status 1 and without a result: " in failure.value.details["last_error"]
    assert failure.value.details["last_error"].rsplit(": ", 1)[1].strip()


def test_nothing_of_a_child_stays_open(case: Case) -> None:
    case.provisioner.fetch(REF, lambda _event: None)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    case.provisioner.fetch(REF, lambda _event: None)
    assert before == 0 or len(os.listdir("/proc/self/fd")) <= before
