"""The amounts that a hive tells of its models are those that it asks for when it starts a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rbee.core.settings import Settings
from rbee.hive.devices import Devices
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.model_fits import ModelFits
from rbee.hive.preflight import Preflight
from rbee.testing.fake_device_probe import FakeDeviceProbe, fake_gpus
from support.gguf_factory import TinyModel
from support.tiny_ct2 import write_tiny_model


def asked_for(path: Path, settings: Settings) -> dict[str, dict[str, int]]:
    """What the checks of a spawn ask for, by backend."""
    kind = ModelFormat.CTRANSLATE2 if path.is_dir() else ModelFormat.GGUF
    devices = Devices(FakeDeviceProbe(gpus=fake_gpus(5000)), settings.hardware)
    checks, told = Preflight(devices, settings), {}
    for backend in ("cpu", "cuda"):
        claim = checks.check_worker(LocalModel(path, kind, 1), backend, None, lambda *_: None).claim
        told[backend] = {"ram": claim.ram_mb} | ({"vram": claim.vram_mb} if backend == "cuda" else {})
    return told


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"worker": {"max_parallel_requests": 4, "context_tokens": 256}},
        {"hardware": {"ram_available_mb": 5000, "vram_available_mb": 5000}},
    ],
    ids=["default", "slots", "stated memory"],
)
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_the_amounts_are_those_of_the_checks(tmp_path: Path, kind: str, sections: dict[str, Any]) -> None:
    settings = Settings.model_validate({**sections, "paths": {"models_dir": str(tmp_path / "models")}})
    path = write_tiny_model(tmp_path / "f") if kind == "folder" else TinyModel().write(tmp_path / "m.gguf")
    told = ModelFits(settings).of(path)
    assert told is not None
    asked = asked_for(path, settings)
    assert told["cuda"] == asked["cuda"]
    # The smallest type is told; a processor with memory to spare takes float32 for a model this small.
    assert asked["cpu"]["ram"] - 1 <= told["cpu"]["ram"] <= asked["cpu"]["ram"]


def test_a_model_that_is_gone_or_cannot_run_has_no_amounts(tmp_path: Path) -> None:
    fits = ModelFits(Settings())
    assert fits.of(tmp_path / "gone.gguf") is None
    assert fits.of(tmp_path) is None
    odd = TinyModel(metadata={"attn_logit_softcapping": 50.0}).write(tmp_path / "odd.gguf")
    assert fits.of(odd) is None


def test_a_compute_type_that_a_gguf_cannot_have_gives_no_amounts(tmp_path: Path) -> None:
    settings = Settings.model_validate({"worker": {"compute_type": "default"}})
    assert ModelFits(settings).of(TinyModel().write(tmp_path / "m.gguf")) is None
    assert ModelFits(settings).of(write_tiny_model(tmp_path / "folder")) is not None
