"""Checks before a worker starts: memory, backend, device, device memory, disk; each is told and logged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee.core.errors import (
    BackendUnavailable,
    DeviceUnavailable,
    DiskFull,
    MemoryExhausted,
)
from rbee.core.logs import get_logger
from rbee.core.settings import Settings
from rbee.hive.devices import CPU, CUDA, MIB, Devices, NodeDevices
from rbee.hive.local_models import LocalModel, plan_conversion
from rbee.hive.ports import Narrator
from rbee.hive.threads import in_thread

log = get_logger("rbee-hive")

ACTOR, ACTION = "rbee-hive", "preflight"


@dataclass(frozen=True)
class Placement:
    """Where a worker will run and in which compute type; memory was checked for ``size_bytes`` on disk."""

    backend: str
    device: int
    compute_type: str
    size_bytes: int


def required_mb(size_bytes: int) -> int:
    """The memory that a model of this size on disk needs: 1.2 times its size, in MB rounded up."""
    return -(-size_bytes * 12 // (10 * MIB))


def choose_device(found: NodeDevices, backend: str | None, device: int | None) -> tuple[str, int]:
    """The device a worker runs on: never another backend than the one asked for.

    Without a backend the CUDA device with most free memory, else cpu 0; without a device the one of that
    backend with most free memory.

    Raises:
        BackendUnavailable, DeviceUnavailable: the node has no such backend or device.
    """
    if backend is None:
        backend = CUDA if CUDA in found.backends else CPU
    if backend not in found.backends:
        raise BackendUnavailable(backend, found.backends)
    available = found.indices(backend)
    if device is None:
        device = max(available, key=lambda index: (found.free_mb(backend, index), -index))
    if device not in available:
        raise DeviceUnavailable(backend, device, available)
    return backend, device


class Preflight:
    """The checks of this node, on what its devices have free at the moment."""

    def __init__(self, devices: Devices, settings: Settings) -> None:
        self._devices = devices
        self._settings = settings

    def check_worker(
        self, local: LocalModel, backend: str | None, device: int | None, narrate: Narrator
    ) -> Placement:
        """All checks for a worker of this model.

        Raises:
            MemoryExhausted, BackendUnavailable, DeviceUnavailable, DiskFull: the check of that name fails.
            ModelIncompatible: the model's header cannot be read.
        """
        found = self._devices.look()
        required = required_mb(local.size_bytes)
        self._memory("ram", required, found.ram_available_mb, narrate)
        backend, device = self._place(found, backend, device, narrate)
        if backend == CUDA:
            self._memory("vram", required, found.free_mb(backend, device), narrate, f"{backend}:{device} ")
        settings, memory_bytes = self._settings, found.free_mb(backend, device) * MIB
        plan = in_thread(
            lambda: plan_conversion(
                local, settings.models_dir, settings.worker.compute_type, backend, memory_bytes
            )
        )
        self._disk(plan.disk_bytes, narrate)
        return Placement(backend, device, plan.compute_type, local.size_bytes)

    def check_converted(self, folder: Path, placement: Placement, narrate: Narrator) -> None:
        """The memory checks again, for the size of the converted folder, when that is larger than the file.

        Raises:
            MemoryExhausted: it does not fit.
        """
        size = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
        if size <= placement.size_bytes:
            return
        found = self._devices.look()
        required = required_mb(size)
        self._memory("ram", required, found.ram_available_mb, narrate, "converted model ")
        if placement.backend == CUDA:
            free = found.free_mb(CUDA, placement.device)
            self._memory("vram", required, free, narrate, f"converted model cuda:{placement.device} ")

    def _place(
        self, found: NodeDevices, backend: str | None, device: int | None, narrate: Narrator
    ) -> tuple[str, int]:
        listed = ", ".join(found.backends) or "none"
        try:
            chosen, index = choose_device(found, backend, device)
        except BackendUnavailable as error:
            asked = error.details["requested"]
            _tell(narrate, f"backend {asked}: not among {listed}", False, check="backend", backend=asked)
            raise
        except DeviceUnavailable as error:
            asked, number = error.details["backend"], error.details["requested"]
            _tell(narrate, f"backend {asked}: available", True, check="backend", backend=asked)
            _tell(narrate, f"device {asked}:{number}: not here", False, check="device", device=number)
            raise
        _tell(narrate, f"backend {chosen}: available", True, check="backend", backend=chosen)
        _tell(narrate, f"device {chosen}:{index}: available", True, check="device", device=index)
        return chosen, index

    def _memory(
        self, resource: str, required: int, available: int, narrate: Narrator, label: str = ""
    ) -> None:
        passed = required <= available
        text = f"{label}{resource.upper()} {required} MB required, {available} MB available"
        _tell(narrate, text, passed, check=resource, required_mb=required, available_mb=available)
        if not passed:
            raise MemoryExhausted(required, available, resource)

    def _disk(self, needed_bytes: int, narrate: Narrator) -> None:
        required = -(-needed_bytes // MIB)
        available = self._devices.disk_available_mb(self._settings.models_dir)
        passed = required <= available
        text = f"disk {required} MB required, {available} MB available"
        _tell(narrate, text, passed, check="disk", required_mb=required, available_mb=available)
        if not passed:
            raise DiskFull(required, available)


def _tell(narrate: Narrator, text: str, passed: bool, **facts: Any) -> None:
    human = f"Preflight {text}: {'passed' if passed else 'failed'}"
    log.info("preflight", message=human, passed=passed, **facts)
    narrate(ACTOR, ACTION, human)
