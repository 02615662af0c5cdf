"""How many processor cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(stated: str | None = None) -> int:
    """Physical cores open to this process, within its cgroup's quota; ``stated`` (OMP_NUM_THREADS) wins."""
    if stated is not None and stated.split(",")[0].strip().isdigit():
        return max(1, int(stated.split(",")[0]))
    cores = _physical_cores()
    quota = cpu_quota(_CGROUPS, _OWN_CGROUP)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(cgroups: Path, own_cgroup: Path) -> float | None:
    """Processors' worth of time that the process's cgroup and those above it allow; None without a limit.

    From cgroup v2's ``cpu.max``, quota and period in microseconds (Linux, admin-guide/cgroup-v2.rst).
    """
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = cgroups / path.lstrip("/")
    limits = []
    while folder == cgroups or cgroups in folder.parents:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            limits.append(float(quota) / float(period))
        except (OSError, ValueError, ZeroDivisionError):
            pass
        folder = folder.parent
    return min(limits, default=None)


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    # Two hardware threads of one core share its vector units: counting both would only add contention.
    return len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})


def _core_of(cpu: int) -> tuple[str, str]:
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = (folder / "physical_package_id").read_text().strip()
        return package, (folder / "core_id").read_text().strip()
    except OSError:
        return "cpu", str(cpu)
