"""What this node has to run models on: the port that looks, and the view that the rest of the hive has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rbee.core.nvidia import Gpu
from rbee.core.settings import Hardware

MIB = 1024 * 1024
CPU, CUDA = "cpu", "cuda"
OFFERED_BACKENDS = (CUDA, CPU)
"""In order of preference; ``metal`` is a valid name that no node of this version offers."""

CPU_DEVICES = 1
"""A hive offers its processors as one device, cpu 0."""


class DeviceProbe(Protocol):
    """Looks at the machine whenever it is asked; what it cannot find out is an answer (0, no GPU)."""

    def ram_total_mb(self) -> int:
        """Memory of the host, capped by the cgroup limit of this process."""

    def ram_available_mb(self) -> int:
        """Memory that could be taken now without swapping, capped likewise."""

    def gpus(self) -> list[Gpu]:
        """CUDA devices that the engine can use, by index; empty when there are none or the driver fails."""

    def disk_available_mb(self, path: Path) -> int:
        """Free space on the file system of ``path`` (or of its nearest folder that exists)."""

    def held_mb(self, pid: int) -> int:
        """Memory that a process and its descendants hold for themselves; 0 when it is gone."""


@dataclass(frozen=True)
class NodeDevices:
    """One look at the node, with the values stated in ``[hardware]`` in place of the probed ones."""

    counts: dict[str, int]
    """Devices by backend, in order of preference; a backend without devices is not listed."""
    ram_total_mb: int
    ram_available_mb: int
    gpus: tuple[Gpu, ...] = field(default=())

    @property
    def backends(self) -> list[str]:
        return list(self.counts)

    def indices(self, backend: str) -> list[int]:
        """The device indices of a backend; a GPU that the driver has lost leaves a gap."""
        if backend == CUDA:
            return [gpu.index for gpu in self.gpus]
        return list(range(self.counts.get(backend, 0)))

    def free_mb(self, backend: str, index: int) -> int:
        """Free memory where a model on that device lives: the device's own, or the host's."""
        if backend != CUDA:
            return self.ram_available_mb
        return next((gpu.free_mb for gpu in self.gpus if gpu.index == index), 0)


class Devices:
    """The node's devices as the hive reports and checks them.

    Args:
        probe: looks at the machine.
        stated: the ``[hardware]`` section; each value there replaces what the probe would say.
        run: calls a function that may block in native code (a driver, a disk) and returns its result.
    """

    def __init__(
        self,
        probe: DeviceProbe,
        stated: Hardware,
        run: Callable[[Callable[[], Any]], Any] = lambda call: call(),
    ) -> None:
        self._probe = probe
        self._stated = stated
        self._run = run

    def look(self) -> NodeDevices:
        """The devices and their free memory at this moment; nothing is kept from an earlier look."""
        total = self._probe.ram_total_mb()
        counts = stated_counts(self._stated)
        vram_mb = self._stated.vram_available_mb
        needs_probe = counts is None or (counts.get(CUDA, 0) > 0 and vram_mb is None)
        probed = tuple(self._run(self._probe.gpus)) if needs_probe else ()
        if counts is None:
            counts = {CUDA: len(probed), CPU: CPU_DEVICES}
            indices = [gpu.index for gpu in probed]
        else:
            indices = list(range(counts.get(CUDA, 0)))
        gpus = tuple(_gpu(index, probed, vram_mb) for index in indices)
        ram_mb = self._stated.ram_available_mb
        return NodeDevices(
            counts={name: counts[name] for name in OFFERED_BACKENDS if counts.get(name)},
            ram_total_mb=max(total, ram_mb or 0),
            ram_available_mb=self._probe.ram_available_mb() if ram_mb is None else ram_mb,
            gpus=gpus,
        )

    def free_mb(self, device: int) -> int | None:
        """Free memory of a CUDA device as the driver tells it; None where it cannot be told or is stated."""
        if self._stated.vram_available_mb is not None:
            return None
        gpus: list[Gpu] = self._run(self._probe.gpus)
        return next((gpu.free_mb for gpu in gpus if gpu.index == device), None)

    def disk_available_mb(self, path: Path) -> int:
        return int(self._run(lambda: self._probe.disk_available_mb(path)))

    def held_mb(self, pid: int) -> int:
        """Memory that has gone from what is free to a process and its descendants; 0 where that is stated."""
        if self._stated.ram_available_mb is not None:
            return 0
        return int(self._run(lambda: self._probe.held_mb(pid)))

    def capabilities(self, node: str, models_dir: Path) -> dict[str, Any]:
        """The body of ``GET /v1/capabilities``, also printed by ``rbee-hive detect``."""
        found = self.look()
        return {
            "node": node,
            "backends": found.backends,
            "devices": found.counts,
            "ram_total_mb": found.ram_total_mb,
            "ram_available_mb": found.ram_available_mb,
            "vram": [
                {"device": gpu.index, "total_mb": gpu.total_mb, "available_mb": gpu.free_mb}
                for gpu in found.gpus
            ],
            "disk_available_mb": self.disk_available_mb(models_dir),
        }


def stated_counts(stated: Hardware) -> dict[str, int] | None:
    """``hardware.devices`` as numbers by backend, e.g. ``"cuda:2,cpu:1"``; None when it is not set."""
    if stated.devices is None:
        return None
    parts = (part.split(":") for part in stated.devices.split(","))
    return {name: int(number) for name, number in parts if name in OFFERED_BACKENDS}


def _gpu(index: int, probed: tuple[Gpu, ...], stated_mb: int | None) -> Gpu:
    stated = Gpu(index, "", "stated in [hardware]", 0, 0)
    found = next((gpu for gpu in probed if gpu.index == index), stated)
    if stated_mb is None:
        return found
    return replace(found, total_mb=max(found.total_mb, stated_mb), free_mb=stated_mb)
