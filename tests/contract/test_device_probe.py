"""What every device probe promises, held by the real one and the fake."""

import sys
import types
from pathlib import Path

import psutil
import pytest

from rbee.hive.adapters.device_probe import MachineProbe, memory_limits, visible_gpus
from rbee.hive.devices import MIB, DeviceProbe, Gpu
from rbee.testing.fake_device_probe import FakeDeviceProbe, fake_gpus


@pytest.fixture(params=["real", "fake", "fake with GPUs"])
def probe(request: pytest.FixtureRequest) -> DeviceProbe:
    if request.param == "real":
        return MachineProbe()
    return FakeDeviceProbe(gpus=fake_gpus(*((1, 2) if "GPUs" in request.param else ())))


def test_memory_is_told_in_mb_and_available_is_part_of_total(probe: DeviceProbe) -> None:
    assert 0 < probe.ram_available_mb() <= probe.ram_total_mb() < 2**26


def test_gpus_come_by_index_each_with_its_memory(probe: DeviceProbe) -> None:
    gpus = probe.gpus()
    assert [gpu.index for gpu in gpus] == sorted({gpu.index for gpu in gpus})
    assert all(0 <= gpu.free_mb <= gpu.total_mb and gpu.uuid for gpu in gpus)


def test_disk_space_is_told_for_a_folder_that_does_not_exist_yet(probe: DeviceProbe, tmp_path: Path) -> None:
    there, not_yet = probe.disk_available_mb(tmp_path), probe.disk_available_mb(tmp_path / "a" / "b")
    assert there > 0
    assert abs(there - not_yet) < 512


def test_the_real_probe_agrees_with_the_system() -> None:
    if not memory_limits(Path("/")) or min(limit for limit, _ in memory_limits(Path("/"))) > 2**50:
        assert MachineProbe().ram_total_mb() == psutil.virtual_memory().total // MIB
    assert MachineProbe().ram_available_mb() * MIB <= psutil.virtual_memory().total


# -- cgroups ----------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limited_v2(root: Path, folder: str, limit: str, usage: int, cached: int) -> None:
    base = root / "sys/fs/cgroup" / folder
    write(base / "memory.max", limit + "\n")
    write(base / "memory.current", f"{usage}\n")
    write(base / "memory.stat", f"anon 1\ninactive_file {cached}\nactive_file 0\n")


def test_a_version_2_limit_caps_memory_and_file_pages_count_as_free(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/user/hive.service\n")
    limited_v2(tmp_path, "user/hive.service", str(100 * MIB), 60 * MIB, 20 * MIB)
    probe = MachineProbe(root=tmp_path)
    assert (probe.ram_total_mb(), probe.ram_available_mb()) == (100, 60)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/user/hive.service\n")
    limited_v2(tmp_path, "user/hive.service", "max", 0, 0)
    limited_v2(tmp_path, "user", str(50 * MIB), 45 * MIB, 0)
    assert MachineProbe(root=tmp_path).ram_available_mb() == 5


def test_in_a_container_the_limit_is_at_the_top_of_the_mount(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/../../outside\n")
    limited_v2(tmp_path, "", str(80 * MIB), 10 * MIB, 0)
    assert MachineProbe(root=tmp_path).ram_available_mb() == 70


def test_a_version_1_limit_caps_memory(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n")
    base = tmp_path / "sys/fs/cgroup/memory/box"
    write(base / "memory.limit_in_bytes", f"{64 * MIB}\n")
    write(base / "memory.usage_in_bytes", f"{48 * MIB}\n")
    write(base / "memory.stat", f"cache 1\ntotal_inactive_file {8 * MIB}\ntotal_active_file {4 * MIB}\n")
    probe = MachineProbe(root=tmp_path)
    assert (probe.ram_total_mb(), probe.ram_available_mb()) == (64, 28)


def test_a_cgroup_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/x\n")
    limited_v2(tmp_path, "x", str(10 * MIB), 12 * MIB, 0)
    assert MachineProbe(root=tmp_path).ram_available_mb() == 0


@pytest.mark.parametrize("content", [None, "", "0::/gone\n", "4:memory:/gone\n"])
def test_without_a_readable_cgroup_the_host_counts(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        write(tmp_path / "proc/self/cgroup", content)
    assert MachineProbe(root=tmp_path).ram_total_mb() == psutil.virtual_memory().total // MIB


# -- CUDA_VISIBLE_DEVICES ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "physical"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("GPU-22", [2]),
        ("GPU-3333,GPU-0000", [3, 0]),
        ("1,9,2", [1]),
        ("-1", []),
        ("0,0", [0]),
        ("GPU-", []),
        ("NoDevFiles", []),
    ],
)
def test_devices_are_numbered_as_cuda_numbers_them(visible: str | None, physical: list[int]) -> None:
    gpus = fake_gpus(10, 11, 12, 13)
    seen = visible_gpus(gpus, visible)
    assert [gpu.index for gpu in seen] == list(range(len(physical)))
    assert [gpu.free_mb - 10 for gpu in seen] == physical


# -- drivers ----------------------------------------------------------------------------------------------


class NvmlError(Exception):
    """Stands for the binding's error."""


class NotSupported(NvmlError):
    """Stands for the binding's error of that name."""


def binding(**calls: object) -> types.ModuleType:
    """A stand-in for the NVML library, which this machine may lack; the driver is not ours to start."""
    module = types.ModuleType("pynvml")
    usable = {
        "NVMLError": NvmlError,
        "NVMLError_NotSupported": NotSupported,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetName": lambda _handle: "Test GPU",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(
            total=8 * MIB, free=(handle + 1) * MIB
        ),
    }
    for name, call in {**usable, **calls}.items():
        setattr(module, name, call)
    return module


class ProbeOfUsableGpus(MachineProbe):
    """The real probe on a machine whose engine can use every GPU of the driver."""

    def _count_of_engine(self) -> int:
        return 16


def failing(error: Exception) -> object:
    def call(*_: object) -> None:
        raise error

    return call


def test_gpus_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding())
    assert ProbeOfUsableGpus().gpus() == [
        Gpu(0, "GPU-0", "Test GPU", 8, 1),
        Gpu(1, "GPU-1", "Test GPU", 8, 2),
    ]


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlShutdown"])
@pytest.mark.parametrize("error", [NvmlError("Driver Not Loaded"), OSError("libcuda"), AttributeError("x")])
def test_every_driver_error_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding(**{call: failing(error)}))
    assert len(ProbeOfUsableGpus().gpus()) == (2 if call == "nvmlShutdown" else 0)


def test_a_gpu_that_the_driver_has_lost_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(handle: int) -> object:
        if handle == 0:
            raise NvmlError("GPU is lost")
        return types.SimpleNamespace(total=8 * MIB, free=5 * MIB)

    monkeypatch.setitem(sys.modules, "pynvml", binding(nvmlDeviceGetMemoryInfo=memory))
    assert [(gpu.index, gpu.free_mb) for gpu in ProbeOfUsableGpus().gpus()] == [(1, 5)]


def test_a_gpu_that_shares_the_hosts_memory_is_told_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding(nvmlDeviceGetMemoryInfo=failing(NotSupported("no"))))
    assert ProbeOfUsableGpus().gpus()[0].total_mb == psutil.virtual_memory().total // MIB


def test_gpus_that_the_engine_cannot_use_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    if ctranslate2.get_cuda_device_count() > 0:
        pytest.skip("this machine has CUDA devices")
    monkeypatch.setitem(sys.modules, "pynvml", binding())
    assert MachineProbe().gpus() == []
