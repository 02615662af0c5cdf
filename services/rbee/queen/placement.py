"""Which worker serves a request: the choice among those that exist, as a pure function."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rbee.core.lifecycle import WorkerState
from rbee.queen.ports import WorkerRecord

_PREFERENCE = (WorkerState.IDLE, WorkerState.LOADING, WorkerState.BUSY)


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
