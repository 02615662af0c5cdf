"""NVIDIA devices as their driver tells them through NVML, and as CUDA numbers those that it may see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil

MIB = 1024 * 1024


@dataclass(frozen=True)
class Gpu:
    """One CUDA device. A worker is started with ``index``; ``uuid`` outlives a change of the order."""

    index: int
    uuid: str
    name: str
    total_mb: int
    free_mb: int


@dataclass(frozen=True)
class DriverGpu:
    """A GPU as the driver lists it; one that is partitioned (MIG) computes in its ``instances`` only."""

    whole: Gpu
    is_partitioned: bool = False
    instances: tuple[Gpu, ...] = ()


def driver_gpus(tell: Callable[[str], None]) -> list[DriverGpu]:
    """All devices of the driver; opened anew at every look, since a driver may come, go and fail.

    Args:
        tell: told what cannot be found out.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except _driver_errors() as error:
        tell(f"NVML: {error}")
        return []
    try:
        found = [_driver_gpu(pynvml, index, tell) for index in range(pynvml.nvmlDeviceGetCount())]
    except _driver_errors() as error:
        tell(f"NVML: {error}")
        return []
    finally:
        with contextlib.suppress(*_driver_errors()):
            pynvml.nvmlShutdown()
    return [gpu for gpu in found if gpu is not None]


def _driver_gpu(nvml: Any, index: int, tell: Callable[[str], None]) -> DriverGpu | None:
    """One device, or None when the driver has lost it; the others stay usable."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        whole = _read_gpu(nvml, handle, index)
        # A GPU that cannot be partitioned answers with an error.
        with contextlib.suppress(*_driver_errors()):
            if nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE:
                return DriverGpu(whole, True, tuple(_instances(nvml, handle, index)))
    except _driver_errors() as error:
        tell(f"NVML: GPU {index}: {error}")
        return None
    return DriverGpu(whole)


def _instances(nvml: Any, handle: Any, index: int) -> list[Gpu]:
    found = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        # Places without an instance answer with an error; the others need not follow each other.
        with contextlib.suppress(*_driver_errors()):
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            found.append(_read_gpu(nvml, instance, index))
    return found


def _read_gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:
        # A device that shares the host's memory has none of its own to report.
        host = psutil.virtual_memory()
        total, free = host.total, host.available
    return Gpu(index, str(uuid), str(name), total // MIB, free // MIB)


def visible_gpus(gpus: Sequence[DriverGpu], visible: str | None) -> list[Gpu]:
    """The devices CUDA will show under this value of CUDA_VISIBLE_DEVICES, with CUDA's indices.

    Its rules: entries are indices or (beginnings of) UUIDs; the first one that names no device ends the list;
    an empty value hides all. A partitioned GPU stands for its first instance, and once an instance is among
    the devices it is the only one that CUDA shows; without the variable, partitioned GPUs count only where
    there are no others.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars
    https://docs.nvidia.com/datacenter/tesla/mig-user-guide/#device-enumeration
    """
    if visible is None:
        whole = [gpu.whole for gpu in gpus if not gpu.is_partitioned]
        return whole or _renumbered([instance for gpu in gpus for instance in gpu.instances][:1])
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        match = _named(gpus, entry)
        if match is None or any(gpu.uuid == match.uuid for gpu in chosen):
            break
        chosen.append(match)
    instances = {instance.uuid for gpu in gpus for instance in gpu.instances}
    return _renumbered([gpu for gpu in chosen if gpu.uuid in instances][:1] or chosen)


def _named(gpus: Sequence[DriverGpu], entry: str) -> Gpu | None:
    """The device that an entry names; None for none, and for the beginning of more than one UUID."""
    if entry.startswith("MIG-"):
        found = [each for gpu in gpus for each in gpu.instances if each.uuid.startswith(entry)]
        return found[0] if len(found) == 1 else None
    if entry.isascii() and entry.isdigit():
        named = [gpu for gpu in gpus if gpu.whole.index == int(entry)]
    else:
        named = [gpu for gpu in gpus if entry and gpu.whole.uuid.startswith(entry)]
    if len(named) != 1:
        return None
    (gpu,) = named
    return next(iter(gpu.instances), None) if gpu.is_partitioned else gpu.whole


def _renumbered(gpus: Sequence[Gpu]) -> list[Gpu]:
    return [replace(gpu, index=position) for position, gpu in enumerate(gpus)]


def _driver_errors() -> tuple[type[Exception], ...]:
    """What the binding raises: its own errors, and the loader's for a driver that is half installed."""
    import pynvml

    return (pynvml.NVMLError, OSError, AttributeError, ValueError)
