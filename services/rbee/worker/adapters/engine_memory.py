"""Memory as the engine sees it: what is in use, what is free, which errors mean that it ran out."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import psutil

from rbee.core.nvidia import Gpu, driver_gpus, visible_gpus

MB = 1 << 20
_M_ARENA_MAX = -8
"""mallopt(3); of <malloc.h>."""
_RAN_OUT = ("out of memory", "bad_alloc", "failed to allocate", "alloc_failed", "cannot allocate memory")


_UNWINDER: list[ctypes.CDLL] = []


def load_unwinder() -> None:
    """Load what the C library needs to end a thread, while there is memory for it.

    It looks for this library only when the first thread is unwound; when that is because memory ran out, it
    cannot load it and aborts the process ("libgcc_s.so.1 must be installed for unwinding to work").
    """
    if sys.platform == "linux" and not _UNWINDER:
        with contextlib.suppress(OSError):
            _UNWINDER.append(ctypes.CDLL("libgcc_s.so.1"))


def use_one_heap() -> None:
    """Have glibc serve all threads from one heap; to be called before the engine has made threads.

    By default a thread gets a heap of its own and keeps what was freed there, and the engine has a thread per
    slot and takes another one for each batch. So a worker would hold what its batches took one after the
    other, not what they take at a time; and each would fetch from the system what another one has to spare.
    """
    if sys.platform == "linux":
        # Not there in other C libraries than glibc.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the engine failed for want of memory; ``std::bad_alloc`` arrives as MemoryError."""
    return isinstance(error, MemoryError) or any(mark in str(error).lower() for mark in _RAN_OUT)


def available_bytes(device: str, index: int, visible: str | None) -> int:
    """Free memory of the device; main memory for ``cpu`` and where the driver does not say."""
    gpu = _gpu(index, visible) if device == "cuda" else None
    return int(psutil.virtual_memory().available) if gpu is None else gpu.free_mb * MB


def gpu_used_bytes(index: int, visible: str | None) -> int | None:
    """Device memory in use by all processes, or None where the driver does not say."""
    gpu = _gpu(index, visible)
    return None if gpu is None else (gpu.total_mb - gpu.free_mb) * MB


def _gpu(index: int, visible: str | None) -> Gpu | None:
    """The device that CUDA gives this number where it may see the ``visible`` ones; NVML counts all."""
    gpus = visible_gpus(driver_gpus(lambda _problem: None), visible)
    return next((gpu for gpu in gpus if gpu.index == index), None)
