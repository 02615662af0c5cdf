"""Looks at this machine: memory through psutil and cgroups, NVIDIA devices through NVML, and disks."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from rbee.core.logs import get_logger
from rbee.core.nvidia import Gpu, driver_gpus, visible_gpus
from rbee.hive.devices import MIB

log = get_logger("rbee-hive")

_ENGINE_CHECK = "import ctranslate2; print(ctranslate2.get_cuda_device_count())"
_ENGINE_CHECK_TIMEOUT_S = 30.0


class MachineProbe:
    """The ``DeviceProbe`` of a real machine.

    Args:
        visible_devices: the value of CUDA_VISIBLE_DEVICES. CUDA numbers only the devices it names, in its
            order, while NVML always sees all of them; the indices here are CUDA's (by PCI bus).
        root: where ``/proc`` and ``/sys`` are found.
    """

    def __init__(self, visible_devices: str | None = None, root: Path = Path("/")) -> None:
        self._visible = visible_devices
        self._root = root
        self._engine_answer: tuple[tuple[str, ...], int] = ((), 0)
        self._last_problem: str | None = None

    def ram_total_mb(self) -> int:
        limits = [limit for limit, _ in memory_limits(self._root)]
        return min([psutil.virtual_memory().total, *limits]) // MIB

    def ram_available_mb(self) -> int:
        rooms = [max(0, limit - used) for limit, used in memory_limits(self._root)]
        return min([psutil.virtual_memory().available, *rooms]) // MIB

    def gpus(self) -> list[Gpu]:
        found = visible_gpus(driver_gpus(self._tell), self._visible)
        return found[: self._count_of_engine(tuple(gpu.uuid for gpu in found))] if found else []

    def disk_available_mb(self, path: Path) -> int:
        existing = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        try:
            return shutil.disk_usage(existing).free // MIB
        except OSError as error:
            self._tell(f"free space of {existing}: {error.strerror}")
            return 0

    def held_mb(self, pid: int) -> int:
        # Pages of files are left out: they count as available.
        held = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    memory = each.memory_info()
                    held += max(0, memory.rss - getattr(memory, "shared", 0))
        return held // MIB

    def _count_of_engine(self, uuids: tuple[str, ...]) -> int:
        """How many of these devices CTranslate2 can use; asked again while none, and when they change.

        It is asked in a process of its own: the CUDA runtime remembers its devices, and a failure, for the
        life of a process, and costs the hive memory.
        """
        known_of, count = self._engine_answer
        if count > 0 and known_of == uuids:
            return count
        count = 0
        try:
            answer = subprocess.run(
                [sys.executable, "-c", _ENGINE_CHECK],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_ENGINE_CHECK_TIMEOUT_S,
                check=True,
            )
            count = max(0, int(answer.stdout))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self._tell(f"the engine cannot be asked for CUDA devices: {error}")
        else:
            if count == 0:
                self._tell("the driver shows GPUs, but CTranslate2 cannot use them (CUDA libraries missing?)")
        self._engine_answer = (uuids, count)
        return count

    def _tell(self, problem: str) -> None:
        """Log a problem once, not at every look."""
        if problem != self._last_problem:
            self._last_problem = problem
            log.info("device_probe", message=problem)


def memory_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every cgroup above this process that limits memory, versions 1 and 2.

    Pages of files count as free: the kernel drops them when memory is asked for.
    https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            names = ("memory.max", "memory.current", "inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            )
        else:
            continue
        for mount in mounts:
            found += [_limit_of(folder, *names) for folder in _folders(mount, path)]
    return [limit for limit in found if limit is not None]


def _folders(mount: Path, path: str) -> list[Path]:
    """The cgroup's folder and all above it; in a container the path may lie outside of what is mounted."""
    folder = mount / path.lstrip("/")
    folders = [mount] if folder == mount else [folder, *folder.parents]
    inside = folders[: folders.index(mount) + 1] if mount in folders else [mount]
    return [candidate for candidate in inside if candidate.is_dir()]


def _limit_of(folder: Path, limit_name: str, usage_name: str, *reclaimable: str) -> tuple[int, int] | None:
    try:
        limit = int((folder / limit_name).read_text())
        usage = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None  # "max", or a cgroup without a memory controller
    cached = sum(int(stat.get(name, 0)) for name in reclaimable)
    return limit, max(0, usage - cached)
