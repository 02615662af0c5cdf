"""Memory as the engine sees it: what is in use, what is free, which errors mean that it ran out."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import psutil

MB = 1 << 20
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the engine failed for want of memory; ``std::bad_alloc`` arrives as MemoryError."""
    return isinstance(error, MemoryError) or any(mark in str(error).lower() for mark in _RAN_OUT)


def available_bytes(device: str, index: int) -> int:
    """Free memory of the device; main memory for ``cpu`` and where the driver does not say."""
    if device == "cuda":
        state = _gpu(index)
        if state is not None:
            return state[1]
    return int(psutil.virtual_memory().available)


def gpu_used_bytes(index: int) -> int | None:
    """Device memory in use by all processes, or None where the driver does not say."""
    state = _gpu(index)
    return None if state is None else state[0]


def _gpu(index: int) -> tuple[int, int] | None:
    """Used and free bytes of a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            state = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
            return int(state.used), int(state.free)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
