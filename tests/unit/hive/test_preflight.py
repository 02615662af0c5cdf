"""The checks before a worker starts: their order, their figures, what they say."""

import logging
import re
from collections.abc import Callable
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
from rbee.hive.memory_claims import MemoryClaim
from rbee.hive.preflight import Placement, Preflight, choose_device, required_mb
from rbee.models.conversion import convert
from rbee.models.storage import sha256_of_file
from rbee.testing.fake_device_probe import FakeDeviceProbe, fake_gpus
from support.gguf_factory import TinyModel
from support.tiny_ct2 import write_tiny_model


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


FolderModel = Callable[[int], LocalModel]
Claims = list[tuple[MemoryClaim, int | None]]


@pytest.fixture(scope="module")
def folder_model(tmp_path_factory: pytest.TempPathFactory) -> FolderModel:
    """Models that need no conversion: a tiny one, under any size on disk."""
    folder = write_tiny_model(tmp_path_factory.mktemp("ready"))
    return lambda size_mb: LocalModel(folder, ModelFormat.CTRANSLATE2, size_mb * MIB)


def preflight(
    probe: FakeDeviceProbe, claims: Claims | None = None, cores: int = 1, **sections: Any
) -> Preflight:
    settings = Settings.model_validate(sections)
    return Preflight(Devices(probe, settings.hardware), settings, lambda: claims or [], cores)


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


def test_the_checks_come_in_order_and_are_told_and_logged(
    folder_model: FolderModel, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()
    probe = FakeDeviceProbe(gpus=fake_gpus(9000), ram_mb=8000)
    with caplog.at_level(logging.INFO, "rbee"):
        placement = preflight(probe).check_worker(folder_model(5000), "cuda", 0, story)
    assert (placement.backend, placement.device, placement.compute_type) == ("cuda", 0, "default")
    assert story.lines[:5] == [
        "Preflight RAM 6000 MB required, 8000 MB available: passed",
        "Preflight backend cuda: available: passed",
        "Preflight device cuda:0: available: passed",
        "Preflight cuda:0 VRAM 6000 MB required, 9000 MB available: passed",
        "Preflight disk 0 MB required, 100000 MB available: passed",
    ]
    logged = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    checks = [entry["check"] for entry in logged]
    assert checks == ["ram", "backend", "device", "vram", "disk", "ram", "vram"]
    assert (logged[0]["required_mb"], logged[0]["available_mb"], logged[0]["passed"]) == (6000, 8000, True)


def test_memory_is_checked_before_the_backend(folder_model: FolderModel) -> None:
    story = Story()
    checks = preflight(FakeDeviceProbe(), hardware={"ram_available_mb": 4000})
    with pytest.raises(MemoryExhausted) as refused:
        checks.check_worker(folder_model(5000), "metal", None, story)
    assert refused.value.details == {"required": 6000, "available": 4000, "resource": "ram"}
    assert refused.value.suggestion == "Try a smaller quantized model (Q4 instead of Q8)"
    assert story.lines == ["Preflight RAM 6000 MB required, 4000 MB available: failed"]


def test_a_backend_that_no_node_offers_is_refused_after_the_memory_check(folder_model: FolderModel) -> None:
    story = Story()
    checks = preflight(FakeDeviceProbe(), hardware={"ram_available_mb": 8000})
    with pytest.raises(BackendUnavailable) as refused:
        checks.check_worker(folder_model(5000), "metal", None, story)
    assert refused.value.details == {"requested": "metal", "available": ["cpu"]}
    assert story.checks == ["RAM", "backend"]
    assert "metal" in story.lines[-1]


def test_a_device_that_is_not_there_is_refused_with_those_that_are(folder_model: FolderModel) -> None:
    story = Story()
    checks = preflight(FakeDeviceProbe(), hardware={"devices": "cuda:2,cpu:1", "vram_available_mb": 64000})
    with pytest.raises(DeviceUnavailable) as refused:
        checks.check_worker(folder_model(5), "cuda", 2, story)
    assert refused.value.details == {"backend": "cuda", "requested": 2, "available": [0, 1]}
    assert story.checks == ["RAM", "backend", "device"]


def test_device_memory_is_checked_on_cuda(folder_model: FolderModel) -> None:
    hardware = {"devices": "cuda:2,cpu:1", "vram_available_mb": 4000, "ram_available_mb": 64000}
    with pytest.raises(MemoryExhausted) as refused:
        preflight(FakeDeviceProbe(), hardware=hardware).check_worker(folder_model(5000), "cuda", 1, Story())
    assert refused.value.details == {"required": 6000, "available": 4000, "resource": "vram"}
    placed = preflight(FakeDeviceProbe(), hardware=hardware).check_worker(
        folder_model(5000), "cpu", 0, Story()
    )
    assert (placed.backend, placed.device) == ("cpu", 0)


def test_exactly_enough_is_enough(folder_model: FolderModel) -> None:
    checks = preflight(FakeDeviceProbe(ram_mb=6000))
    checks.check_worker(folder_model(5000), None, None, Story())
    with pytest.raises(MemoryExhausted):
        preflight(FakeDeviceProbe(ram_mb=5999)).check_worker(folder_model(5000), None, None, Story())


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
    (disk,) = [line for line in story.lines if line.startswith("Preflight disk ")]
    assert " 0 MB required" not in disk


def test_no_room_for_the_conversion_is_refused_with_the_amounts(small_gguf: LocalModel) -> None:
    with pytest.raises(DiskFull) as refused:
        preflight(FakeDeviceProbe(disk_mb=0)).check_worker(small_gguf, None, None, Story())
    assert refused.value.details["available"] == 0
    assert refused.value.details["required"] >= 1


def test_a_cuda_device_takes_mixed_int8(small_gguf: LocalModel) -> None:
    placement = preflight(FakeDeviceProbe(gpus=fake_gpus(1000))).check_worker(small_gguf, None, None, Story())
    assert placement.compute_type == "int8_float16"


def test_a_finished_conversion_needs_no_more_disk_and_no_look_at_the_header(
    small_gguf: LocalModel, tmp_path: Path
) -> None:
    digest = sha256_of_file(small_gguf.path)
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


# -- the real fit -----------------------------------------------------------------------------------------


def refusal(checks: Preflight, local: LocalModel, **where: Any) -> MemoryExhausted:
    with pytest.raises(MemoryExhausted) as refused:
        checks.check_worker(local, where.get("backend"), where.get("device"), Story())
    return refused.value


def test_what_fits_by_its_size_on_disk_is_refused_when_the_worker_does_not_fit(
    small_gguf: LocalModel,
) -> None:
    first = required_mb(small_gguf.size_bytes)
    error = refusal(preflight(FakeDeviceProbe(ram_mb=first)), small_gguf)
    assert error.details["required"] > 100 > first == error.details["available"]
    assert error.details["resource"] == "ram"


def test_a_refusal_names_terms_on_which_the_model_is_admitted(tmp_path: Path) -> None:
    local = gguf_of(tmp_path, heads=32, heads_kv=32, context=4096)
    worker = {"max_parallel_requests": 2, "context_tokens": 4096}
    probe = FakeDeviceProbe(ram_mb=1000)
    error = refusal(preflight(probe, worker=worker), local)
    advice = dict(re.findall(r"worker\.(\w+) = (\d+)", error.suggestion or ""))
    assert advice
    promised = {**worker, **{name: int(value) for name, value in advice.items()}}
    preflight(probe, worker=promised).check_worker(local, None, None, Story())
    longer = {**promised, "context_tokens": promised["context_tokens"] + 64}
    refusal(preflight(probe, worker=longer), local)


def test_auto_takes_as_many_slots_as_cores_and_memory_serve(tmp_path: Path) -> None:
    local = gguf_of(tmp_path, heads=32, heads_kv=32, context=4096)
    worker = {"max_parallel_requests": "auto", "context_tokens": 4096}
    many = preflight(FakeDeviceProbe(ram_mb=10**6), worker=worker, cores=2)
    assert many.check_worker(local, None, None, Story()).slots == 16
    one = preflight(FakeDeviceProbe(ram_mb=10**6), worker=worker).check_worker(local, None, None, Story())
    assert one.slots == 8
    tight = preflight(FakeDeviceProbe(ram_mb=one.claim.ram_mb), worker=worker, cores=2)
    placed = tight.check_worker(local, None, None, Story())
    assert 1 <= placed.slots < 8
    assert placed.claim.ram_mb < one.claim.ram_mb
    refused = refusal(preflight(FakeDeviceProbe(ram_mb=100), worker=worker), local)
    assert "max_parallel_requests" not in (refused.suggestion or "")


def gguf_of(tmp_path: Path, **changes: Any) -> LocalModel:
    path = TinyModel(**changes).write(tmp_path / "made.gguf")
    return LocalModel(path, ModelFormat.GGUF, path.stat().st_size)


def test_auto_takes_int8_where_only_that_fits(tmp_path: Path) -> None:
    local = gguf_of(tmp_path, width=256, inner=1536, layers=1)
    placed = preflight(FakeDeviceProbe()).check_worker(local, None, None, Story())
    assert placed.compute_type == "float32"
    needed = placed.claim.ram_mb
    checks = preflight(FakeDeviceProbe(ram_mb=needed - 1))
    assert checks.check_worker(local, None, None, Story()).compute_type == "int8"


def test_nothing_is_converted_in_vain_for_a_model_that_cannot_be(tmp_path: Path) -> None:
    local = gguf_of(tmp_path, metadata={"attn_logit_softcapping": 50.0})
    with pytest.raises(ModelIncompatible, match="softcapping"):
        preflight(FakeDeviceProbe()).check_worker(local, None, None, Story())


def test_stated_memory_is_for_models_and_not_for_processes(small_gguf: LocalModel) -> None:
    hardware = {"ram_available_mb": 4}
    placed = preflight(FakeDeviceProbe(), hardware=hardware).check_worker(small_gguf, None, None, Story())
    assert 1 <= placed.claim.ram_mb <= 4


def test_on_cuda_the_device_holds_the_cache_and_the_host_the_weights_for_a_while(
    small_gguf: LocalModel,
) -> None:
    story = Story()
    placed = preflight(FakeDeviceProbe(gpus=fake_gpus(2000))).check_worker(small_gguf, "cuda", 0, story)
    assert [line.split()[5] for line in story.lines[-2:]] == ["RAM", "VRAM"]
    assert min(placed.claim.ram_mb, placed.claim.vram_mb) > 0
    error = refusal(preflight(FakeDeviceProbe(gpus=fake_gpus(100))), small_gguf, backend="cuda")
    assert error.details["resource"] == "vram"
    error = refusal(preflight(FakeDeviceProbe(gpus=fake_gpus(2000), ram_mb=100)), small_gguf, backend="cuda")
    assert error.details["resource"] == "ram"


# -- claims -----------------------------------------------------------------------------------------------


def test_memory_that_a_loading_worker_will_take_is_not_free(folder_model: FolderModel) -> None:
    probe, claims = FakeDeviceProbe(ram_mb=8000), [(MemoryClaim("cpu", 0, 3000), None)]
    error = refusal(preflight(probe, claims), folder_model(5000))
    assert error.details == {"required": 6000, "available": 5000, "resource": "ram"}


def test_what_its_process_holds_already_is_not_counted_twice(folder_model: FolderModel) -> None:
    probe, claims = FakeDeviceProbe(ram_mb=8000), [(MemoryClaim("cpu", 0, 3000), 77)]
    probe.held[77] = 1000
    preflight(probe, claims).check_worker(folder_model(5000), None, None, Story())
    probe.held[77] = 999
    assert refusal(preflight(probe, claims), folder_model(5000)).details["available"] == 5999
    probe.held[77] = 9000
    preflight(probe, claims).check_worker(folder_model(6666), None, None, Story())


def test_a_claim_on_one_gpu_leaves_the_others_free(folder_model: FolderModel) -> None:
    probe = FakeDeviceProbe(gpus=fake_gpus(8000, 7000), ram_mb=64_000)
    claims = [(MemoryClaim("cuda", 0, 10, 4000), None)]
    assert preflight(probe, claims).check_worker(folder_model(5000), None, None, Story()).device == 1
    error = refusal(preflight(probe, claims), folder_model(5000), backend="cuda", device=0)
    assert error.details == {"required": 6000, "available": 4000, "resource": "vram"}


def test_after_a_conversion_the_same_amounts_are_checked_without_the_workers_own_claim() -> None:
    probe, story = FakeDeviceProbe(gpus=fake_gpus(50), ram_mb=40), Story()
    own = MemoryClaim("cuda", 0, 40, 50)
    checks = preflight(probe, [(own, None)])
    checks.check_again(Placement("cuda", 0, "int8_float16", 1, own), story)
    assert story.lines == [
        "Preflight after the conversion RAM 40 MB required, 40 MB available: passed",
        "Preflight after the conversion VRAM 50 MB required, 50 MB available: passed",
    ]
    probe.present = fake_gpus(49)
    with pytest.raises(MemoryExhausted) as refused:
        checks.check_again(Placement("cuda", 0, "int8_float16", 1, own), Story())
    assert refused.value.details == {"required": 50, "available": 49, "resource": "vram"}
