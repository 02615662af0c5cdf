"""Memory that workers will take and have not taken yet: what is free now, less what is promised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rbee.hive.devices import CUDA, NodeDevices


@dataclass(frozen=True, eq=False)
class MemoryClaim:
    """What a worker was admitted with, in MB. It lives with its worker and ends when the model is loaded:
    from then on what it took is missing from what is free."""

    backend: str
    device: int
    ram_mb: int
    vram_mb: int = 0


@dataclass(frozen=True)
class OpenClaim:
    """A claim whose worker has not loaded its model; ``held_mb`` of host memory is its processes' already."""

    claim: MemoryClaim
    held_mb: int = 0


def less_claims(found: NodeDevices, claims: Iterable[OpenClaim]) -> NodeDevices:
    """The node with what is left for others.

    Device memory of a worker that loads is counted in full until the load is over: drivers in containers do
    not tell which process holds how much.
    """
    ram_mb, vram_mb = found.ram_available_mb, {gpu.index: gpu.free_mb for gpu in found.gpus}
    for each in claims:
        ram_mb -= max(0, each.claim.ram_mb - each.held_mb)
        if each.claim.backend == CUDA and each.claim.device in vram_mb:
            vram_mb[each.claim.device] -= each.claim.vram_mb
    gpus = tuple(replace(gpu, free_mb=max(0, vram_mb[gpu.index])) for gpu in found.gpus)
    return replace(found, ram_available_mb=max(0, ram_mb), gpus=gpus)
