"""Which worker, and which node, serves a request: pure functions over what was found."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rbee.core.errors import BackendUnavailable, MemoryExhausted, RbeeError, ServiceUnavailable
from rbee.core.lifecycle import WorkerState
from rbee.queen.ports import Capabilities, WorkerRecord

_PREFERENCE = (WorkerState.IDLE, WorkerState.LOADING, WorkerState.BUSY)
_MIB = 1024 * 1024
_TOLD = 5
"""Nodes with the same reason, and reasons, that an error tells."""
FitMb = Mapping[str, Mapping[str, int]]
"""What a worker of a model takes, in MB by backend and resource, as its hive has calculated it."""

Preference = tuple[int, bool, int]
"""Rank, whether it is a CPU, and the free memory in MB, negated: the lowest is the best."""
_Entry = tuple[Preference, float, str]
_IDLE, _LOADING, _HAS_MODEL, _FITS, _BUSY = range(5)
"""Best first: a worker that can start at once, one that soon can, no download, a download, a queue."""
_ADVANTAGES = {
    _IDLE: "its worker can start at once",
    _LOADING: "its worker is being loaded already",
    _HAS_MODEL: "nothing needs to be downloaded",
    _FITS: "a new worker there waits for no other request",
}


@dataclass(frozen=True)
class Wanted:
    """What a task needs of a node; the model's size and fit are None while nobody knows them."""

    model_ref: str
    backend: str | None = None
    device: int | None = None
    size_bytes: int | None = None
    fit: FitMb | None = None


@dataclass(frozen=True)
class NodeView:
    """A node as it was found a moment ago; ``problem`` says why it could not be asked."""

    node_name: str
    problem: str | None = None
    workers: Sequence[WorkerRecord] = ()
    capabilities: Capabilities | None = None
    model_sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the models that the node has, by reference."""
    model_fits: dict[str, FitMb] = field(default_factory=dict)
    """Of those, the ones whose fit its hive could calculate; with that node's settings."""
    has_hive: bool = False
    """Whether a hive runs there and said all this."""


@dataclass(frozen=True)
class Verdict:
    """Whether a node can serve the task, and why or why not; amounts in MB, None where they do not matter."""

    node_name: str
    fits: bool
    reason: str
    rank: int = _FITS
    device: str | None = None
    required_mb: int | None = None
    available_mb: int | None = None
    refusal: RbeeError | None = None

    @property
    def is_best(self) -> bool:
        """Whether no other node could serve the task sooner."""
        return self.fits and self.rank == _IDLE

    def listed(self) -> dict[str, Any]:
        """The verdict as a plan shows it."""
        return {
            "node": self.node_name,
            "fits": self.fits,
            "reason": self.reason,
            "device": self.device,
            "required_mb": self.required_mb,
            "available_mb": self.available_mb,
        }


def choose_worker(
    workers: Iterable[WorkerRecord],
    model_ref: str,
    backend: str | None,
    device: int | None,
    *,
    excluded: Collection[str] = (),
) -> WorkerRecord | None:
    """The best worker that has the model on the wanted backend and device, or None.

    Idle before loading before busy; a draining, unhealthy or failed worker is never chosen.
    """
    matching = [
        worker
        for worker in workers
        if worker.model_ref == model_ref
        and worker.state in _PREFERENCE
        and backend in (None, worker.backend)
        and device in (None, worker.device)
        and worker.worker_id not in excluded
    ]

    return min(matching, key=lambda worker: _PREFERENCE.index(worker.state), default=None)


def known_size(views: Iterable[NodeView], model_ref: str) -> int | None:
    """The size of the model file, if any node has it."""
    return next((v.model_sizes[model_ref] for v in views if model_ref in v.model_sizes), None)


def known_fit(views: Iterable[NodeView], model_ref: str) -> FitMb | None:
    """What a worker of the model takes, if any node can tell."""
    return next((v.model_fits[model_ref] for v in views if model_ref in v.model_fits), None)


def judge(view: NodeView, wanted: Wanted) -> Verdict:
    """Whether the node can serve, with the first reason against it, in numbers."""
    if view.problem is not None:
        return Verdict(view.node_name, False, view.problem)
    worker = choose_worker(view.workers, wanted.model_ref, wanted.backend, wanted.device)
    if worker is not None:
        rank, text = {
            WorkerState.IDLE: (_IDLE, "an idle worker has the model"),
            WorkerState.LOADING: (_LOADING, "a worker is loading the model"),
        }.get(worker.state, (_BUSY, "its worker with the model is busy"))
        return Verdict(view.node_name, True, text, rank, f"{worker.backend}:{worker.device}")
    if view.capabilities is None:
        return Verdict(view.node_name, False, "its devices are not known")
    return _judge_devices(view, view.capabilities, wanted)


def choose_node(verdicts: Sequence[Verdict]) -> Verdict:
    """The best of the nodes that fit; among equals the one with most free memory, then the first.

    Raises:
        MemoryExhausted, BackendUnavailable: what keeps the node that came closest from it.
        ServiceUnavailable: no node fits, for reasons of which none is the task's.
    """
    fitting = [verdict for verdict in verdicts if verdict.fits]
    if fitting:
        return min(fitting, key=preference)
    refusals = [verdict.refusal for verdict in verdicts]
    memory = [error for error in refusals if isinstance(error, MemoryExhausted)]
    if memory:
        raise max(memory, key=lambda error: int(error.details["available"]))
    missing = [error for error in refusals if isinstance(error, BackendUnavailable)]
    if missing:
        offered = sorted({backend for error in missing for backend in error.details["available"]})
        raise BackendUnavailable(missing[0].details["requested"], offered)
    other = next((error for error in refusals if error is not None), None)
    if other is not None:
        raise other
    raise ServiceUnavailable(f"No node can take this task: {_reasons(verdicts)}")


def preference(verdict: Verdict) -> Preference:
    """By what the nodes that fit are ordered, the best first."""
    on_cpu = verdict.device is None or verdict.device.startswith("cpu")
    return verdict.rank, on_cpu, -(verdict.available_mb or 0)


class Ranking:
    """The nodes that fit, the best first, kept in order while what is known of them changes.

    Equals are in any order, or all tasks that come at once would ask the same few.
    """

    def __init__(self, wanted: Wanted, views: Iterable[NodeView]) -> None:
        self.wanted = wanted
        self._entries: dict[str, _Entry] = {}
        for view in views:
            entry = self._entry(view)
            if entry is not None:
                self._entries[view.node_name] = entry
        self._order = sorted(self._entries.values())

    def put(self, view: NodeView) -> None:
        """Something new is known of a node."""
        self.drop(view.node_name)
        entry = self._entry(view)
        if entry is not None:
            self._entries[view.node_name] = entry
            insort(self._order, entry)

    def drop(self, node_name: str) -> None:
        """A node is no longer there."""
        entry = self._entries.pop(node_name, None)
        if entry is not None:
            del self._order[bisect_left(self._order, entry)]

    def __iter__(self) -> Iterator[tuple[str, Preference]]:
        """Names with what they are ordered by."""
        for preferred, _, name in self._order:
            yield name, preferred

    def _entry(self, view: NodeView) -> _Entry | None:
        verdict = judge(view, self.wanted)
        tie = random.random()  # noqa: S311 (nothing secret)
        return (preference(verdict), tie, view.node_name) if verdict.fits else None


def why_chosen(chosen: Verdict, verdicts: Sequence[Verdict]) -> str:
    """What sets the chosen node apart from the next best one that fits."""
    others = [verdict for verdict in verdicts if verdict.fits and verdict is not chosen]
    if not others:
        return "the only node that fits" if len(verdicts) > 1 else "the only node"
    best, other = preference(chosen), preference(min(others, key=preference))
    if best[0] != other[0]:
        return _ADVANTAGES[chosen.rank]
    if best[1] != other[1]:
        return "its device is no CPU"
    if best[2] != other[2] and chosen.available_mb is not None:
        return f"most free memory, {chosen.available_mb} MB"
    return "the first of equals in the registry"


def _reasons(verdicts: Sequence[Verdict]) -> str:
    """What speaks against the nodes, in a text that a person can read however many they are."""
    names: dict[str, list[str]] = {}
    for verdict in verdicts:
        names.setdefault(verdict.reason, []).append(verdict.node_name)
    told = [f"{_enumerated(group)}: {reason}" for reason, group in names.items()]
    more = [f"and {len(told) - _TOLD} other reasons"] if len(told) > _TOLD else []
    return "; ".join([*told[:_TOLD], *more])


def _enumerated(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def _judge_devices(view: NodeView, found: Capabilities, wanted: Wanted) -> Verdict:
    name = view.node_name
    backend = wanted.backend or ("cuda" if "cuda" in found.backends else "cpu")
    if backend not in found.backends:
        offered = ", ".join(found.backends) or "none"
        refused = BackendUnavailable(backend, list(found.backends))
        return Verdict(name, False, f"no backend {backend}, only {offered}", refusal=refused)
    free = found.free_mb(backend)
    if wanted.device is not None and wanted.device not in free:
        count = len(free)
        return Verdict(name, False, f"no device {backend}:{wanted.device}, it has {count} of {backend}")
    device = wanted.device if wanted.device is not None else max(free, key=lambda i: (free[i], -i), default=0)
    label = f"{backend}:{device}"
    size = wanted.size_bytes
    needs = _needs(view, wanted, backend)
    resources = [("ram", found.ram_available_mb)]
    if backend != "cpu":
        resources.append(("vram", free.get(device, 0)))
    for resource, available in resources:
        required = needs.get(resource)
        if required is not None and required > available:
            return Verdict(
                name,
                False,
                f"{resource.upper()} {required} MB required, {available} MB available",
                device=label,
                required_mb=required,
                available_mb=available,
                refusal=MemoryExhausted(required, available, resource),
            )
    has_model = wanted.model_ref in view.model_sizes
    if not has_model and size is not None and size > found.disk_available_mb * _MIB:
        need = -(-size // _MIB)
        return Verdict(name, False, f"disk {need} MB required, {found.disk_available_mb} MB available")
    resource, available = resources[-1]
    required = needs.get(resource)
    memory = f"{available} MB free"
    memory = f"{memory}, model size unknown" if required is None else f"{required} MB of {memory}"
    reason = f"fits on {label}, {memory}" + (", has the model" if has_model else "")
    rank = _HAS_MODEL if has_model else _FITS
    return Verdict(name, True, reason, rank, label, required, available)


def _needs(view: NodeView, wanted: Wanted, backend: str) -> dict[str, int]:
    """What a hive will ask for: 1.2 times the file's size, and what a worker really takes where one knows."""
    if wanted.size_bytes is None:
        return {}
    by_size = -(-wanted.size_bytes * 12 // (10 * _MIB))
    fit = view.model_fits.get(wanted.model_ref, wanted.fit) or {}
    real = fit.get(backend, {})
    return {resource: max(by_size, real.get(resource, 0)) for resource in ("ram", "vram")}
