"""The checks before a worker starts: their order, their figures, what they say."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import (
    BackendUnavailable,
    DeviceUnavailable,
    DiskFull,
    MemoryExhausted,
    ModelIncompatible,
)
from rbee.core.settings import Settings
from rbee.hive.devices import MIB, Devices, NodeDevices
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.preflight import Placement, Preflight, choose_device, required_mb
from rbee.models.conversion import convert, sha256_of
from rbee.testing.fake_device_probe import FakeDeviceProbe, fake_gpus
from support.gguf_factory import TinyModel


class Story:
    """Collects narration."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, actor: str, action: str, human: str) -> None:
        assert (actor, action) == ("rbee-hive", "preflight")
        assert len(human) <= 100
        self.lines.append(human)

    @property
    def checks(self) -> list[str]:
        return [line.removeprefix("Preflight ").split()[0] for line in self.lines]


def folder_model(size_mb: int) -> LocalModel:
    """A model that needs no conversion."""
    return LocalModel(Path("/models/ready"), ModelFormat.CTRANSLATE2, size_mb * MIB)


def preflight(probe: FakeDeviceProbe, **sections: Any) -> Preflight:
    settings = Settings.model_validate(sections)
    return Preflight(Devices(probe, settings.hardware), settings)


@pytest.mark.parametrize(
    ("size", "mb"),
    [
        (5_242_880, 6),
        (5_242_880_000, 6000),
        (5_242_881, 7),
        (1, 1),
        (0, 0),
        (10 * MIB // 12, 1),
        (94 * MIB, 113),
    ],
)
def test_required_memory_is_a_fifth_more_than_the_size_rounded_up(size: int, mb: int) -> None:
    assert required_mb(size) == mb


def test_the_checks_come_in_order_and_are_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    probe = FakeDeviceProbe(gpus=fake_gpus(9000), ram_mb=8000)
    with caplog.at_level(logging.INFO, "rbee"):
        placement = preflight(probe).check_worker(folder_model(5000), "cuda", 0, story)
    assert placement == Placement("cuda", 0, "default", 5000 * MIB)
    assert story.lines == [
        "Preflight RAM 6000 MB required, 8000 MB available: passed",
        "Preflight backend cuda: available: passed",
        "Preflight device cuda:0: available: passed",
        "Preflight cuda:0 VRAM 6000 MB required, 9000 MB available: passed",
        "Preflight disk 0 MB required, 100000 MB available: passed",
    ]
    logged = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [entry["check"] for entry in logged] == ["ram", "backend", "device", "vram", "disk"]
    assert (logged[0]["required_mb"], logged[0]["available_mb"], logged[0]["passed"]) == (6000, 8000, True)


def test_memory_is_checked_before_the_backend() -> None:
    story = Story()
    checks = preflight(FakeDeviceProbe(), hardware={"ram_available_mb": 4000})
    with pytest.raises(MemoryExhausted) as refused:
        checks.check_worker(folder_model(5000), "metal", None, story)
    assert refused.value.details == {"required": 6000, "available": 4000, "resource": "ram"}
    assert refused.value.suggestion == "Try a smaller quantized model (Q4 instead of Q8)"
    assert story.lines == ["Preflight RAM 6000 MB required, 4000 MB available: failed"]


def test_a_backend_that_no_node_offers_is_refused_after_the_memory_check() -> None:
    story = Story()
    checks = preflight(FakeDeviceProbe(), hardware={"ram_available_mb": 8000})
    with pytest.raises(BackendUnavailable) as refused:
        checks.check_worker(folder_model(5000), "metal", None, story)
    assert refused.value.details == {"requested": "metal", "available": ["cpu"]}
    assert story.checks == ["RAM", "backend"]
    assert "metal" in story.lines[-1]


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    story = Story()
    checks = preflight(FakeDeviceProbe(), hardware={"devices": "cuda:2,cpu:1", "vram_available_mb": 64000})
    with pytest.raises(DeviceUnavailable) as refused:
        checks.check_worker(folder_model(5), "cuda", 2, story)
    assert refused.value.details == {"backend": "cuda", "requested": 2, "available": [0, 1]}
    assert story.checks == ["RAM", "backend", "device"]


def test_device_memory_is_checked_on_cuda() -> None:
    hardware = {"devices": "cuda:2,cpu:1", "vram_available_mb": 4000, "ram_available_mb": 64000}
    with pytest.raises(MemoryExhausted) as refused:
        preflight(FakeDeviceProbe(), hardware=hardware).check_worker(folder_model(5000), "cuda", 1, Story())
    assert refused.value.details == {"required": 6000, "available": 4000, "resource": "vram"}
    placed = preflight(FakeDeviceProbe(), hardware=hardware).check_worker(
        folder_model(5000), "cpu", 0, Story()
    )
    assert (placed.backend, placed.device) == ("cpu", 0)


def test_exactly_enough_is_enough() -> None:
    checks = preflight(FakeDeviceProbe(ram_mb=6))
    checks.check_worker(folder_model(5), None, None, Story())
    with pytest.raises(MemoryExhausted):
        preflight(FakeDeviceProbe(ram_mb=5)).check_worker(folder_model(5), None, None, Story())


def node(*free_mb: int) -> NodeDevices:
    return Devices(FakeDeviceProbe(gpus=fake_gpus(*free_mb)), Settings().hardware).look()


@pytest.mark.parametrize(
    ("free", "backend", "device", "chosen"),
    [
        ((), None, None, ("cpu", 0)),
        ((100, 300, 200), None, None, ("cuda", 1)),
        ((100, 300, 200), "cuda", None, ("cuda", 1)),
        ((300, 300), None, None, ("cuda", 0)),
        ((100,), "cpu", None, ("cpu", 0)),
        ((100, 300), "cuda", 0, ("cuda", 0)),
    ],
)
def test_the_device_with_most_free_memory_is_chosen_where_none_is_asked_for(
    free: tuple[int, ...], backend: str | None, device: int | None, chosen: tuple[str, int]
) -> None:
    assert choose_device(node(*free), backend, device) == chosen


def test_there_is_no_fall_back_to_another_backend() -> None:
    with pytest.raises(BackendUnavailable):
        choose_device(node(), "cuda", None)


# -- conversion -------------------------------------------------------------------------------------------


@pytest.fixture
def small_gguf(tmp_path: Path) -> LocalModel:
    path = TinyModel().write(tmp_path / "small.gguf")
    return LocalModel(path, ModelFormat.GGUF, path.stat().st_size)


def test_a_small_model_runs_in_float32_on_a_cpu_and_needs_disk_for_it(small_gguf: LocalModel) -> None:
    story = Story()
    placement = preflight(FakeDeviceProbe()).check_worker(small_gguf, None, None, story)
    assert placement.compute_type == "float32"
    assert story.lines[-1].startswith("Preflight disk ")
    assert " 0 MB required" not in story.lines[-1]


def test_no_room_for_the_conversion_is_refused_with_the_amounts(small_gguf: LocalModel) -> None:
    with pytest.raises(DiskFull) as refused:
        preflight(FakeDeviceProbe(disk_mb=0)).check_worker(small_gguf, None, None, Story())
    assert refused.value.details["available"] == 0
    assert refused.value.details["required"] >= 1


def test_a_cuda_device_takes_mixed_int8(small_gguf: LocalModel) -> None:
    placement = preflight(FakeDeviceProbe(gpus=fake_gpus(100))).check_worker(small_gguf, None, None, Story())
    assert placement.compute_type == "int8_float16"


def test_a_finished_conversion_needs_no_more_disk_and_no_look_at_the_header(
    small_gguf: LocalModel, tmp_path: Path
) -> None:
    digest = sha256_of(small_gguf.path)
    convert(small_gguf.path, tmp_path / "models", "float32", sha256=digest, on_progress=lambda *_: None)
    known = replace(small_gguf, digest=digest)
    small_gguf.path.write_text("no longer a GGUF, which nobody looks at")
    paths = {"models_dir": str(tmp_path / "models")}
    checks = preflight(FakeDeviceProbe(disk_mb=0), paths=paths)
    assert checks.check_worker(known, None, None, Story()).compute_type == "float32"
    with pytest.raises(ModelIncompatible):
        preflight(FakeDeviceProbe(), paths=paths, worker={"compute_type": "int8"}).check_worker(
            known, None, None, Story()
        )


def converted(tmp_path: Path, size: int) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"\0" * (size - 2))
    (folder / "config.json").write_bytes(b"{}")
    return folder


def test_memory_is_checked_again_for_a_larger_converted_model(tmp_path: Path) -> None:
    story = Story()
    probe = FakeDeviceProbe(gpus=fake_gpus(2), ram_mb=3)
    placement = Placement("cuda", 0, "int8_float16", MIB)
    with pytest.raises(MemoryExhausted) as refused:
        preflight(probe).check_converted(converted(tmp_path, 2 * MIB), placement, story)
    assert refused.value.details == {"required": 3, "available": 2, "resource": "vram"}
    assert story.lines == [
        "Preflight converted model RAM 3 MB required, 3 MB available: passed",
        "Preflight converted model cuda:0 VRAM 3 MB required, 2 MB available: failed",
    ]


def test_a_converted_model_that_is_no_larger_is_not_checked_again(tmp_path: Path) -> None:
    story = Story()
    placement = Placement("cpu", 0, "int8", 2 * MIB)
    preflight(FakeDeviceProbe(ram_mb=0)).check_converted(converted(tmp_path, 2 * MIB), placement, story)
    assert story.lines == []
