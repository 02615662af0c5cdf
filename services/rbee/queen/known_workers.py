"""What the queen remembers of workers between tasks: their keys, who served what, who is being spawned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gevent.lock import RLock

from rbee.queen.placement import Wanted
from rbee.queen.ports import HiveApi, WorkerAccess, WorkerRecord
from rbee.queen.registry import Node
from rbee.queen.relay import hive_answers

_KEYS_KEPT = 1024
_LAST_KEPT = 256


@dataclass(frozen=True)
class Served:
    """A worker that has carried out a task."""

    node_name: str
    access: WorkerAccess
    version: str
    """Of its hive; a worker does not outlive its hive's version."""


class KnownWorkers:
    """In memory only: a queen that was restarted asks the hives again."""

    def __init__(self) -> None:
        self._access: dict[str, WorkerAccess] = {}
        self._last: dict[tuple[str | None, Wanted], Served] = {}
        self.decisions = 0
        """How often a task has decided on a new worker; when it has changed, a list of workers is old."""
        self._locks: dict[tuple[str, str], tuple[RLock, int]] = {}

    def learn(self, access: WorkerAccess) -> WorkerAccess:
        while len(self._access) >= _KEYS_KEPT:
            self._access.pop(next(iter(self._access)))
        self._access[access.worker_id] = access
        return access

    def access_to(self, hive: HiveApi, record: WorkerRecord) -> WorkerAccess:
        """How to call a listed worker; its hive is asked when this queen has no key for it."""
        known = self._access.get(record.worker_id)
        if known is not None and known.url == record.url:
            return known
        with hive_answers(hive):
            return self.learn(hive.access(record.worker_id))

    def note_served(self, node: Node, wanted: Wanted, worker_id: str, version: str) -> None:
        """This worker has just carried out such a task, below a hive of that version."""
        access = self._access.get(worker_id)
        if access is None:
            return
        for key in ((node.node_name, wanted), (None, wanted)):
            self._last.pop(key, None)
            self._last[key] = Served(node.node_name, access, version)
        while len(self._last) > _LAST_KEPT:
            self._last.pop(next(iter(self._last)))

    def last_for(self, node: Node | None, wanted: Wanted) -> Served | None:
        """Who carried out the last such task, on that node or on any, unless it is known to be gone."""
        served = self._last.get((None if node is None else node.node_name, wanted))
        return served if served is not None and served.access.worker_id in self._access else None

    def forget(self, worker_id: str) -> None:
        self._access.pop(worker_id, None)

    @contextmanager
    def one_at_a_time(self, node: Node, wanted: Wanted) -> Iterator[None]:
        """Only one task at a time decides on a new worker for this model on this node."""
        key = (node.node_name, wanted.model_ref)
        lock, waiting = self._locks.get(key, (RLock(), 0))
        self._locks[key] = (lock, waiting + 1)
        try:
            with lock:
                yield
        finally:
            self.decisions += 1
            lock, waiting = self._locks.pop(key)
            if waiting > 1:
                self._locks[key] = (lock, waiting - 1)
