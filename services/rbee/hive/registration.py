"""The ready callback: a worker tells its hive that its HTTP is up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rbee.core.errors import InvalidApiKey, MissingApiKey, WorkerAlreadyRegistered
from rbee.core.schemas import WorkerReadyCallback
from rbee.hive.greenlets import start
from rbee.hive.workers import WorkerRegistry
from rbee.web.auth import is_bearer_of

Notify = Callable[[dict[str, Any]], None]
"""Tells a queen of a worker; failures are its own affair."""


class Registration:
    """Takes callbacks.

    Args:
        notify: passes the news to a queen, None when no queen is known.
    """

    def __init__(self, registry: WorkerRegistry, notify: Notify | None, log: Any) -> None:
        self._registry = registry
        self._notify = notify
        self._log = log

    def accept(self, callback: WorkerReadyCallback, authorization: str | None) -> None:
        """The worker's HTTP is up; the same callback again changes nothing.

        Args:
            authorization: the header; it must carry the worker's own key.

        Raises:
            MissingApiKey, InvalidApiKey: it does not.
            WorkerNotFound: this hive has no such worker.
            WorkerAlreadyRegistered: it is registered with another URL.
        """
        if authorization is None:
            raise MissingApiKey()
        record, seat = self._registry.get(callback.worker_id), self._registry.seat(callback.worker_id)
        if not is_bearer_of(authorization, seat.key):
            raise InvalidApiKey()
        if callback.url.rstrip("/") != record.url:
            raise WorkerAlreadyRegistered(record.id)
        self._registry.touch(record.id)
        facts = {
            "worker_id": record.id,
            "url": record.url,
            "model_ref": record.model_ref,
            "backend": record.backend,
            "device": record.device,
        }
        self._log.info("worker_ready_callback", message=f"worker {record.id} is up at {record.url}", **facts)
        if seat.up.is_set():
            return
        seat.up.set()
        if self._notify is not None:
            start(self._log, self._notify, facts)
