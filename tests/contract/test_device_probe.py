"""What every device probe promises, held by the real one and the fake."""

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rbee.core.nvidia import DriverGpu, Gpu, visible_gpus
from rbee.hive.adapters.device_probe import MachineProbe, memory_limits
from rbee.hive.devices import MIB, DeviceProbe
from rbee.testing.fake_device_probe import FakeDeviceProbe, fake_gpus
from rbee.worker.adapters.engine_memory import available_bytes, gpu_used_bytes

GPU_COUNTS = (0, 1, 4)


@pytest.fixture(params=["real", *(f"{kind} {count}" for kind in ("driver", "fake") for count in GPU_COUNTS)])
def probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DeviceProbe:
    """The real probe on this machine and over a stand-in for the driver's binding, and the fake."""
    kind, _, count = request.param.partition(" ")
    if kind == "driver":
        monkeypatch.setitem(sys.modules, "pynvml", binding(nvmlDeviceGetCount=lambda: int(count)))
        engine_counting(monkeypatch, tmp_path, int(count))
        return MachineProbe()
    return MachineProbe() if kind == "real" else FakeDeviceProbe(gpus=fake_gpus(*range(int(count or 0))))


def test_memory_is_told_in_mb_and_available_is_part_of_total(probe: DeviceProbe) -> None:
    assert 0 < probe.ram_available_mb() <= probe.ram_total_mb() < 2**26


def test_gpus_come_by_index_each_with_its_memory(probe: DeviceProbe) -> None:
    gpus = probe.gpus()
    assert [gpu.index for gpu in gpus] == sorted({gpu.index for gpu in gpus})
    assert all(0 <= gpu.free_mb <= gpu.total_mb and gpu.uuid for gpu in gpus)
    assert len({gpu.uuid for gpu in gpus}) == len(gpus)


@pytest.mark.parametrize(
    "probe", [f"{kind} {n}" for kind in ("driver", "fake") for n in GPU_COUNTS], indirect=True
)
def test_as_many_gpus_are_found_as_there_are(probe: DeviceProbe, request: pytest.FixtureRequest) -> None:
    count = int(request.node.callspec.params["probe"].split()[1])
    assert [gpu.index for gpu in probe.gpus()] == list(range(count))
    assert probe.gpus() == probe.gpus()


def test_a_process_that_is_gone_holds_nothing(probe: DeviceProbe) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert probe.held_mb(gone.pid) == 0


def test_disk_space_is_told_for_a_folder_that_does_not_exist_yet(probe: DeviceProbe, tmp_path: Path) -> None:
    there, not_yet = probe.disk_available_mb(tmp_path), probe.disk_available_mb(tmp_path / "a" / "b")
    assert there > 0
    assert abs(there - not_yet) < 512


def test_the_real_probe_agrees_with_the_system() -> None:
    if not memory_limits(Path("/")) or min(limit for limit, _ in memory_limits(Path("/"))) > 2**50:
        assert MachineProbe().ram_total_mb() == psutil.virtual_memory().total // MIB
    assert MachineProbe().ram_available_mb() * MIB <= psutil.virtual_memory().total


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process whose child holds 64 MB."""
    hold = "import time; held = bytearray(64 * 2**20); print('held', flush=True); time.sleep(60)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    command = [sys.executable, "-c", nested]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        os.killpg(process.pid, 9)


def test_what_a_process_holds_is_counted_with_its_children(holder: subprocess.Popen[str]) -> None:
    assert 64 <= MachineProbe().held_mb(holder.pid) < 128


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
    gpus = [DriverGpu(gpu) for gpu in fake_gpus(10, 11, 12, 13)]
    seen = visible_gpus(gpus, visible)
    assert [gpu.index for gpu in seen] == list(range(len(physical)))
    assert [gpu.free_mb - 10 for gpu in seen] == physical


def partitioned(whole: Gpu, *uuids: str) -> DriverGpu:
    parts = (Gpu(whole.index, uuid, "instance", 100, 50) for uuid in uuids)
    return DriverGpu(whole, True, tuple(parts))


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["GPU-0000"]),
        ("0", ["GPU-0000"]),
        ("1", ["MIG-a1"]),
        ("GPU-11", ["MIG-a1"]),
        ("MIG-a2", ["MIG-a2"]),
        ("MIG-b", ["MIG-b1"]),
        ("MIG-a", []),
        ("MIG-", []),
        ("MIG-x", []),
        ("MIG-a2,MIG-a1", ["MIG-a2"]),
        ("0,MIG-b1", ["MIG-b1"]),
        ("3", []),
        ("0,3,MIG-b1", ["GPU-0000"]),
    ],
)
def test_of_partitioned_gpus_one_instance_is_seen(visible: str | None, seen: list[str]) -> None:
    first, second, third, fourth = fake_gpus(1, 2, 3, 4)
    gpus = [
        DriverGpu(first),
        partitioned(second, "MIG-a1", "MIG-a2"),
        partitioned(third, "MIG-b1"),
        partitioned(fourth),
    ]
    found = visible_gpus(gpus, visible)
    assert [gpu.uuid for gpu in found] == seen
    assert [gpu.index for gpu in found] == list(range(len(seen)))


def test_where_all_gpus_are_partitioned_the_first_instance_is_seen() -> None:
    first, second = fake_gpus(1, 2)
    gpus = [partitioned(first), partitioned(second, "MIG-b1", "MIG-b2")]
    assert [(gpu.index, gpu.uuid) for gpu in visible_gpus(gpus, None)] == [(0, "MIG-b1")]


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
        "NVML_DEVICE_MIG_ENABLE": 1,
        "nvmlDeviceGetMigMode": failing(NotSupported("Not Supported")),
    }
    for name, call in {**usable, **calls}.items():
        setattr(module, name, call)
    return module


def engine_counting(monkeypatch: pytest.MonkeyPatch, folder: Path, count: int | str) -> Callable[[], int]:
    """Put an engine before the real one that counts as many devices; tells how often it was asked."""
    asked = folder / "asked"
    (folder / "ctranslate2.py").write_text(
        f"def get_cuda_device_count():\n"
        f"    with open({str(asked)!r}, 'a') as file: file.write('x')\n"
        f"    return {count}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    # One that is written twice within a second would be taken from its bytecode.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return lambda: len(asked.read_text()) if asked.exists() else 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """An engine that can use every GPU of the driver."""
    return engine_counting(monkeypatch, tmp_path, 16)


def failing(error: Exception) -> object:
    def call(*_: object) -> None:
        raise error

    return call


@pytest.mark.usefixtures("asked")
def test_gpus_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding())
    assert MachineProbe().gpus() == [
        Gpu(0, "GPU-0", "Test GPU", 8, 1),
        Gpu(1, "GPU-1", "Test GPU", 8, 2),
    ]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlShutdown"])
@pytest.mark.parametrize("error", [NvmlError("Driver Not Loaded"), OSError("libcuda"), AttributeError("x")])
def test_every_driver_error_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding(**{call: failing(error)}))
    assert len(MachineProbe().gpus()) == (2 if call == "nvmlShutdown" else 0)


@pytest.mark.usefixtures("asked")
def test_a_gpu_that_the_driver_has_lost_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(handle: int) -> object:
        if handle == 0:
            raise NvmlError("GPU is lost")
        return types.SimpleNamespace(total=8 * MIB, free=5 * MIB)

    monkeypatch.setitem(sys.modules, "pynvml", binding(nvmlDeviceGetMemoryInfo=memory))
    assert [(gpu.index, gpu.free_mb) for gpu in MachineProbe().gpus()] == [(1, 5)]


@pytest.mark.usefixtures("asked")
def test_a_gpu_that_shares_the_hosts_memory_is_told_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding(nvmlDeviceGetMemoryInfo=failing(NotSupported("no"))))
    assert MachineProbe().gpus()[0].total_mb == psutil.virtual_memory().total // MIB


def test_gpus_that_the_engine_cannot_use_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    if ctranslate2.get_cuda_device_count() > 0:
        pytest.skip("this machine has CUDA devices")
    monkeypatch.setitem(sys.modules, "pynvml", binding())
    assert MachineProbe().gpus() == []


@pytest.mark.usefixtures("asked")
def test_a_gpu_that_comes_or_goes_between_two_looks_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = binding(nvmlDeviceGetCount=lambda: 1)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    engine_counting(monkeypatch, tmp_path, 1)
    probe = MachineProbe()
    assert len(probe.gpus()) == 1
    module.nvmlDeviceGetCount = lambda: 4  # type: ignore[attr-defined]
    engine_counting(monkeypatch, tmp_path, 4)
    assert len(probe.gpus()) == 4
    module.nvmlInit = failing(NvmlError("Driver Not Loaded"))  # type: ignore[attr-defined]
    assert probe.gpus() == []
    module.nvmlInit = lambda: None  # type: ignore[attr-defined]
    assert len(probe.gpus()) == 4


def test_the_engine_is_asked_once_for_the_same_gpus_and_again_while_it_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding())
    asked, probe = engine_counting(monkeypatch, tmp_path, 0), MachineProbe()
    assert [probe.gpus(), probe.gpus(), asked()] == [[], [], 2]
    engine_counting(monkeypatch, tmp_path, 2)
    assert [len(probe.gpus()), len(probe.gpus()), asked()] == [2, 2, 3]


@pytest.mark.parametrize("answer", ["'many'", "-1", "1 / 0", "None"])
def test_an_engine_that_cannot_say_has_no_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding())
    engine_counting(monkeypatch, tmp_path, answer)
    assert MachineProbe().gpus() == []


@pytest.mark.usefixtures("asked")
def test_only_visible_gpus_are_offered_with_the_indices_that_workers_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding(nvmlDeviceGetCount=lambda: 4))
    assert [(gpu.index, gpu.uuid) for gpu in MachineProbe("GPU-3,1").gpus()] == [(0, "GPU-3"), (1, "GPU-1")]
    assert MachineProbe("").gpus() == []


@pytest.mark.usefixtures("asked")
def test_instances_are_read_from_the_driver_and_empty_places_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def instance(_gpu: int, place: int) -> int:
        if place != 1:
            raise NvmlError("Not Found")
        return 5

    parts = {
        "nvmlDeviceGetMigMode": lambda handle: (int(handle == 1), 0),
        "nvmlDeviceGetMaxMigDeviceCount": lambda _handle: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": instance,
        "nvmlDeviceGetUUID": lambda handle: "MIG-abc" if handle == 5 else f"GPU-{handle}",
    }
    monkeypatch.setitem(sys.modules, "pynvml", binding(**parts))
    assert MachineProbe("MIG-a").gpus() == [Gpu(0, "MIG-abc", "Test GPU", 8, 6)]
    assert [gpu.uuid for gpu in MachineProbe().gpus()] == ["GPU-0"]


def test_a_worker_reads_the_memory_of_the_device_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's number 0 is the driver's number 3 here."""

    def memory(handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(total=8 * MIB, free=handle * MIB, used=(8 - handle) * MIB)

    four = binding(nvmlDeviceGetCount=lambda: 4, nvmlDeviceGetMemoryInfo=memory)
    monkeypatch.setitem(sys.modules, "pynvml", four)
    visible = "GPU-3,1"
    assert [available_bytes("cuda", index, visible) for index in (0, 1)] == [3 * MIB, 1 * MIB]
    assert [gpu_used_bytes(index, visible) for index in (0, 1, 2)] == [5 * MIB, 7 * MIB, None]
