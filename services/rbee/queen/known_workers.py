"""What the queen remembers of workers between tasks: their keys, who served what, who is being spawned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gevent.lock import RLock

from rbee.queen.placement import Wanted
from rbee.queen.ports import HiveApi, WorkerAccess, WorkerRecord
from rbee.queen.registry import Node
from rbee.queen.relay import hive_answers

_KEYS_KEPT = 1024
_LAST_KEPT = 256


class KnownWorkers:
    """In memory only: a queen that was restarted asks the hives again."""

    def __init__(self) -> None:
        self._access: dict[str, WorkerAccess] = {}
        self._last: dict[tuple[str, Wanted], str] = {}
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

    def note_served(self, node: Node, wanted: Wanted, worker_id: str) -> None:
        """This worker has just carried out such a task."""
        while len(self._last) >= _LAST_KEPT:
            self._last.pop(next(iter(self._last)))
        self._last[(node.node_name, wanted)] = worker_id

    def last_for(self, node: Node, wanted: Wanted) -> WorkerAccess | None:
        """The worker that carried out the last such task on the node, unless it is known to be gone."""
        return self._access.get(self._last.get((node.node_name, wanted), ""))

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
