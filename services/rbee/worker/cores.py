"""How many processor cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(stated: str | None = None) -> int:
    """Physical cores open to this process, within its cgroup's quota; ``stated`` (OMP_NUM_THREADS) wins."""
    if stated is not None and stated.split(",")[0].strip().isdigit():
        return max(1, int(stated.split(",")[0]))
    cores = _physical_cores()
    quota = _quota(_QUOTA)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    # Two hardware threads of one core share its vector units: counting both would only add contention.
    return len({_core_of(cpu) for cpu in allowed})


def _core_of(cpu: int) -> tuple[str, str]:
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = (folder / "physical_package_id").read_text().strip()
        return package, (folder / "core_id").read_text().strip()
    except OSError:
        return "cpu", str(cpu)


def _quota(path: Path) -> float | None:
    """Processor time per time of the cgroup (v2 ``cpu.max``: quota and period in microseconds)."""
    try:
        quota, period = path.read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
