"""A machine as a test wants it: memory, disk and any number of GPUs."""

from __future__ import annotations

from pathlib import Path

from rbee.core.nvidia import Gpu


class FakeDeviceProbe:
    """Implements DeviceProbe with given figures; change the attributes to change the machine."""

    def __init__(
        self,
        *,
        gpus: list[Gpu] | None = None,
        ram_total_mb: int = 32_000,
        ram_mb: int = 16_000,
        disk_mb: int = 100_000,
    ) -> None:
        self.present = gpus or []
        self.ram_total = ram_total_mb
        self.ram = ram_mb
        self.disk = disk_mb
        self.held: dict[int, int] = {}

    def ram_total_mb(self) -> int:
        return self.ram_total

    def ram_available_mb(self) -> int:
        return self.ram

    def gpus(self) -> list[Gpu]:
        return list(self.present)

    def disk_available_mb(self, path: Path) -> int:
        self.asked_disk_of = path
        return self.disk

    def held_mb(self, pid: int) -> int:
        return self.held.get(pid, 0)


def fake_gpus(*free_mb: int, total_mb: int = 24_000) -> list[Gpu]:
    """One GPU for each given amount of free memory."""
    return [
        Gpu(index, f"GPU-{index}{index}{index}{index}", "Fake GPU", total_mb, free)
        for index, free in enumerate(free_mb)
    ]
