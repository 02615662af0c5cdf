"""A request that is sent to the worker of the last such task while its hive is still being asked about it.

Nothing of its answer reaches the client before the hive has confirmed the worker, so that a task goes through
the same decisions with it and without it; only their time is hidden behind the reading of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import RbeeError
from rbee.queen.greenlets import spawn
from rbee.queen.ports import Events, WorkerApi


class EarlyRequest:
    """One request under way, to be taken over or abandoned."""

    def __init__(self, worker: WorkerApi, body: Mapping[str, Any], cancel_timeout_s: float) -> None:
        self.access = worker.access
        self._worker = worker
        self._request_id = str(body["request_id"])
        self._cancel_timeout_s = cancel_timeout_s
        self._refusal: RbeeError | TransportFailure | None = None
        self._events: Events | None = None
        self._sending = spawn(self._send, body)

    @property
    def is_refused(self) -> bool:
        """Whether the worker has already declined."""
        return self._refusal is not None

    def take(self) -> Events:
        """The open answer, waited for if need be.

        Raises:
            RbeeError, TransportFailure: as ``WorkerApi.infer`` does.
        """
        self._sending.join()
        if self._refusal is not None:
            raise self._refusal
        if self._events is None:
            raise TransportFailure("reset", "the request was abandoned")
        return self._events

    def abandon(self) -> gevent.Greenlet:
        """Take the request back; returns at once, join the result to wait until the worker has said so."""
        return spawn(self._take_back)

    def _send(self, body: Mapping[str, Any]) -> None:
        try:
            self._events = self._worker.infer(body)
        except (RbeeError, TransportFailure) as refusal:
            self._refusal = refusal

    def _take_back(self) -> None:
        self._sending.kill()
        if self._refusal is not None:
            return
        if self._events is not None:
            self._events.close()
        with gevent.Timeout(self._cancel_timeout_s, False):
            try:
                self._worker.cancel(self._request_id, self._cancel_timeout_s)
            except (RbeeError, TransportFailure):
                # The closed connection tells the worker as well.
                return
