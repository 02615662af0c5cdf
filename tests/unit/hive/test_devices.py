"""What a hive says of its devices, from a probe and from the [hardware] section."""

from pathlib import Path

import pytest

from rbee.core.settings import Hardware
from rbee.hive.devices import Devices
from rbee.testing.fake_device_probe import FakeDeviceProbe, fake_gpus


def devices(probe: FakeDeviceProbe, **stated: object) -> Devices:
    return Devices(probe, Hardware.model_validate(stated))


@pytest.mark.parametrize(
    ("free", "backends", "counts"),
    [
        ((), ["cpu"], {"cpu": 1}),
        ((8000,), ["cuda", "cpu"], {"cuda": 1, "cpu": 1}),
        ((1, 2, 3, 4), ["cuda", "cpu"], {"cuda": 4, "cpu": 1}),
    ],
    ids=["no GPU", "one GPU", "four GPUs"],
)
def test_capabilities_list_what_the_probe_finds(
    free: tuple[int, ...], backends: list[str], counts: dict[str, int]
) -> None:
    probe = FakeDeviceProbe(gpus=fake_gpus(*free), ram_total_mb=100, ram_mb=70, disk_mb=5)
    assert devices(probe).capabilities("blep", Path("/models")) == {
        "node": "blep",
        "backends": backends,
        "devices": counts,
        "ram_total_mb": 100,
        "ram_available_mb": 70,
        "vram": [{"device": index, "total_mb": 24_000, "available_mb": mb} for index, mb in enumerate(free)],
        "disk_available_mb": 5,
    }


def test_an_empty_answer_of_the_driver_is_not_kept() -> None:
    probe = FakeDeviceProbe()
    seen = devices(probe)
    assert seen.look().backends == ["cpu"]
    probe.present = fake_gpus(4000)
    assert seen.look().counts == {"cuda": 1, "cpu": 1}
    assert seen.free_mb(0) == 4000
    probe.present = []
    assert seen.look().backends == ["cpu"]
    assert seen.free_mb(0) is None


def test_stated_devices_replace_the_probed_ones() -> None:
    found = devices(FakeDeviceProbe(), devices="cuda:2,cpu:1", vram_available_mb=4000).look()
    assert found.counts == {"cuda": 2, "cpu": 1}
    assert found.backends == ["cuda", "cpu"]
    assert [(gpu.index, gpu.free_mb, gpu.total_mb) for gpu in found.gpus] == [
        (0, 4000, 4000),
        (1, 4000, 4000),
    ]


def test_a_node_can_state_that_its_gpus_are_not_for_models() -> None:
    found = devices(FakeDeviceProbe(gpus=fake_gpus(8000)), devices="cpu:1").look()
    assert found.counts == {"cpu": 1}
    assert found.gpus == ()


def test_stated_devices_keep_the_probed_memory_unless_that_is_stated_too() -> None:
    probe = FakeDeviceProbe(gpus=fake_gpus(111, 222))
    assert [gpu.free_mb for gpu in devices(probe, devices="cuda:2").look().gpus] == [111, 222]
    assert [gpu.free_mb for gpu in devices(probe, vram_available_mb=7).look().gpus] == [7, 7]


def test_a_stated_device_that_is_not_there_has_no_memory() -> None:
    found = devices(FakeDeviceProbe(gpus=fake_gpus(111)), devices="cuda:2").look()
    assert [gpu.free_mb for gpu in found.gpus] == [111, 0]


def test_stated_memory_replaces_the_probed_one() -> None:
    found = devices(FakeDeviceProbe(ram_total_mb=1000, ram_mb=500), ram_available_mb=8000).look()
    assert (found.ram_available_mb, found.ram_total_mb) == (8000, 8000)
    assert devices(FakeDeviceProbe(), ram_available_mb=0).look().ram_available_mb == 0


def test_metal_is_never_offered() -> None:
    assert devices(FakeDeviceProbe(), devices="metal:1,cpu:1").look().backends == ["cpu"]


def test_a_lost_gpu_leaves_a_gap_in_the_indices() -> None:
    probe = FakeDeviceProbe(gpus=[gpu for gpu in fake_gpus(1, 2, 3) if gpu.index != 1])
    found = devices(probe).look()
    assert found.indices("cuda") == [0, 2]
    assert found.counts["cuda"] == 2
    assert found.free_mb("cuda", 2) == 3
    assert found.free_mb("cuda", 1) == 0


def test_recovery_of_stated_device_memory_cannot_be_watched() -> None:
    assert devices(FakeDeviceProbe(), devices="cuda:1", vram_available_mb=5).free_mb(0) is None
