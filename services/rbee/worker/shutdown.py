"""The orderly end of a worker: no new requests, active ones until a deadline, then the model."""

from __future__ import annotations

import time
from typing import Any

import gevent

from rbee.core.lifecycle import WorkerState
from rbee.web.server import Serving
from rbee.web.sse import OpenStreams
from rbee.worker.admission import Admission
from rbee.worker.ports import Engine
from rbee.worker.slots import Slots

# Cancelled runs end within a token; an engine that does not even do that must not keep the process.
_CANCEL_GRACE_S = 5.0
_UNLOAD_LIMIT_S = 5.0
_LOOK_UP_S = 0.1


class Shutdown:
    """Ends a worker in order: no new requests, active ones until the deadline, then the model."""

    def __init__(
        self,
        slots: Slots,
        engine: Engine,
        admission: Admission,
        loading_streams: OpenStreams,
        serving: Serving,
        log: Any,
        *,
        drain_timeout_s: float,
    ) -> None:
        self._slots = slots
        self._engine = engine
        self._admission = admission
        self._loading_streams = loading_streams
        self._serving = serving
        self._log = log
        self._drain_timeout_s = drain_timeout_s
        self._deadline: float | None = None

    def request(self, timeout_s: float | None) -> None:
        """Begin, as SIGTERM does, and return; active requests get ``timeout_s`` (None: as configured).

        Of several calls the earliest deadline holds.
        """
        self._begin(timeout_s)
        self._serving.request_shutdown()

    def run(self) -> None:
        """Drain and unload; HTTP is still served meanwhile."""
        self._begin(None)
        self._drain()
        self._loading_streams.end_all("the worker is shutting down")
        if self._engine.is_loaded:
            started = time.monotonic()
            with gevent.Timeout(_UNLOAD_LIMIT_S, False):
                self._engine.unload()
                took = round((time.monotonic() - started) * 1000)
                self._log.info("model_unloaded", message="the model is unloaded", duration_ms=took)

    def _begin(self, timeout_s: float | None) -> None:
        if self._slots.state is not WorkerState.DRAINING:
            self._log.info("draining", message="shutting down", active_requests=self._slots.busy)
        self._slots.drain()
        timeout_s = self._drain_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def _drain(self) -> None:
        while self._slots.busy and self._deadline is not None and time.monotonic() < self._deadline:
            self._slots.wait_empty(min(_LOOK_UP_S, max(0.0, self._deadline - time.monotonic())))
        if self._slots.busy:
            self._log.warning(
                "drain_timeout", message="active requests are cancelled", active_requests=self._slots.busy
            )
            self._admission.cancel_all()
            self._slots.wait_empty(_CANCEL_GRACE_S)
