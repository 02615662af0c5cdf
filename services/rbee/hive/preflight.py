"""Checks before a worker starts: memory, backend, device, disk, and the real fit; each is told and logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from rbee.hive.local_models import ConversionPlan, LocalModel, plan_conversion
from rbee.hive.memory_claims import MemoryClaim, OpenClaim, less_claims
from rbee.hive.ports import Narrator
from rbee.hive.threads import in_thread
from rbee.models.memory_fit import Amount, Room, Terms, calculate_fit, compare, is_enough
from rbee.models.slot_choice import choose_slots

log = get_logger("rbee-hive")

ACTOR, ACTION = "rbee-hive", "preflight"


@dataclass(frozen=True)
class Placement:
    """Where a worker will run, in which compute type, and the memory it was admitted with."""

    backend: str
    device: int
    compute_type: str
    slots: int
    claim: MemoryClaim


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
    """The checks of this node, on what its devices have free at the moment.

    Args:
        open_claims: the claims of workers that have yet to load their model, with the pids of their
            processes; what they will still take is not free.
        cores: processor cores that a worker may use.
    """

    def __init__(
        self,
        devices: Devices,
        settings: Settings,
        open_claims: Callable[[], Sequence[tuple[MemoryClaim, int | None]]] = tuple,
        cores: int = 1,
    ) -> None:
        self._devices = devices
        self._settings = settings
        self._open_claims = open_claims
        self._cores = cores

    def check_worker(
        self, local: LocalModel, backend: str | None, device: int | None, narrate: Narrator
    ) -> Placement:
        """All checks for a worker of this model.

        The first is on the size of its file, as quick as it is rough; the last on what its converted form,
        its cache and its process will take.

        Raises:
            MemoryExhausted, BackendUnavailable, DeviceUnavailable, DiskFull: the check of that name fails.
            ModelIncompatible: the model's header cannot be read, or it cannot be converted.
        """
        found = self._look()
        required = required_mb(local.size_bytes)
        self._memory(Amount("ram", required, found.ram_available_mb), narrate)
        backend, device = self._place(found, backend, device, narrate)
        if backend == CUDA:
            amount = Amount("vram", required, found.free_mb(backend, device))
            self._memory(amount, narrate, f"{backend}:{device} ")
        plan, terms = self._plan(local, found, backend, device)
        amounts = compare(calculate_fit(plan.shape, terms), self._room(found, backend, device))
        self._disk(plan.disk_bytes, narrate)
        for amount in amounts:
            suggestion = None if amount.is_enough else self._advice(plan, terms, found, device)
            self._memory(amount, narrate, f"{plan.compute_type} model in use ", suggestion)
        needs = {amount.resource: amount.required_mb for amount in amounts}
        claim = MemoryClaim(backend, device, needs["ram"], needs.get("vram", 0))
        return Placement(backend, device, plan.compute_type, terms.slots, claim)

    def check_again(self, placement: Placement, narrate: Narrator) -> None:
        """The last check once more: a conversion takes a while, in which others may have taken memory.

        Raises:
            MemoryExhausted: it does not fit any more.
        """
        claim = placement.claim
        found = self._look(except_for=claim)
        amounts = [Amount("ram", claim.ram_mb, found.ram_available_mb)]
        if claim.backend == CUDA:
            amounts.append(Amount("vram", claim.vram_mb, found.free_mb(CUDA, claim.device)))
        for amount in amounts:
            self._memory(amount, narrate, "after the conversion ")

    def _look(self, except_for: MemoryClaim | None = None) -> NodeDevices:
        """What is free and promised to nobody; a load that moves on meanwhile may count twice."""
        claims = [
            OpenClaim(claim, 0 if pid is None else self._devices.held_mb(pid))
            for claim, pid in self._open_claims()
            if claim is not except_for
        ]
        return less_claims(self._devices.look(), claims)

    def _plan(
        self, local: LocalModel, found: NodeDevices, backend: str, device: int
    ) -> tuple[ConversionPlan, Terms]:
        """How the model will run; ``auto`` takes the smaller type where only it fits, and slots by memory."""
        settings, room = self._settings, self._room(found, backend, device)

        def planned(memory_bytes: int) -> tuple[ConversionPlan, Terms]:
            setting, models_dir = settings.worker.compute_type, settings.models_dir
            plan = in_thread(lambda: plan_conversion(local, models_dir, setting, backend, memory_bytes))
            return plan, self._terms(plan, backend, room)

        plan, terms = planned(found.free_mb(backend, device) * MIB)
        if settings.worker.compute_type == "auto" and not is_enough(calculate_fit(plan.shape, terms), room):
            return planned(0)
        return plan, terms

    def _advice(self, plan: ConversionPlan, terms: Terms, found: NodeDevices, device: int) -> str:
        from rbee.models.fit_advice import advise

        return advise(plan.shape, terms, self._room(found, terms.backend, device))

    def _terms(self, plan: ConversionPlan, backend: str, room: Room) -> Terms:
        worker = self._settings.worker
        asked = worker.max_parallel_requests
        terms = Terms(plan.compute_type, worker.context_tokens, 1 if asked == "auto" else asked, backend)
        if asked != "auto":
            return terms
        return replace(terms, slots=choose_slots(plan.shape, terms, room, self._cores))

    def _room(self, found: NodeDevices, backend: str, device: int) -> Room:
        stated = self._settings.hardware
        return Room(
            ram_mb=found.ram_available_mb,
            vram_mb=found.free_mb(backend, device) if backend == CUDA else None,
            is_ram_stated=stated.ram_available_mb is not None,
            is_vram_stated=stated.vram_available_mb is not None,
        )

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
        self, amount: Amount, narrate: Narrator, label: str = "", suggestion: str | None = None
    ) -> None:
        resource, required, available = amount.resource, amount.required_mb, amount.available_mb
        text = f"{label}{resource.upper()} {required} MB required, {available} MB available"
        facts = {"check": resource, "required_mb": required, "available_mb": available}
        _tell(narrate, text, amount.is_enough, **facts)
        if not amount.is_enough:
            raise MemoryExhausted(required, available, resource, suggestion=suggestion)

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
