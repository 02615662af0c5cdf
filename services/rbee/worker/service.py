"""The life of a worker: listen, load and call the hive side by side, serve, end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flask
import gevent

from rbee.core.errors import InternalError, RbeeError
from rbee.core.lifecycle import WorkerState
from rbee.web.server import Serving
from rbee.worker.admission import Admission
from rbee.worker.loading import LoadingJournal, ModelLoader
from rbee.worker.narration import Narrator
from rbee.worker.ports import CallbackFailed, Engine, Hive, TextModel
from rbee.worker.shutdown import Shutdown
from rbee.worker.slots import Slots

CALLBACK_ATTEMPTS = 3


@dataclass(frozen=True)
class Identity:
    """What a worker is, as it tells its hive; ``pid`` is the daemon's."""

    worker_id: str
    model_ref: str
    backend: str
    device: int
    url: str
    pid: int

    def report(self, state: WorkerState) -> dict[str, object]:
        return {
            "worker_id": self.worker_id,
            "url": self.url,
            "model_ref": self.model_ref,
            "backend": self.backend,
            "device": self.device,
            "state": str(state),
            "pid": self.pid,
        }


@dataclass(frozen=True)
class Parts:
    """What the service runs with."""

    identity: Identity
    slots: Slots
    engine: Engine
    loader: ModelLoader
    journal: LoadingJournal
    admission: Admission
    hive: Hive
    serving: Serving
    narrate: Narrator
    log: Any
    callback_pause_s: float = 1.0


class WorkerService:
    """Implements ``rbee.web.server.Service``."""

    def __init__(
        self, app: flask.Flask, parts: Parts, shutdown: Shutdown, reload_key: Callable[[], None]
    ) -> None:
        self.app = app
        self._parts = parts
        self._shutdown = shutdown
        self._reload_key = reload_key

    def listening(self) -> None:
        gevent.spawn(self._supervise_start)

    def shut_down(self) -> None:
        self._shutdown.run()

    def reload(self) -> None:
        self._reload_key()

    def _supervise_start(self) -> None:
        try:
            self._start_up()
        except Exception as error:
            self._parts.log.error("internal_error", message=type(error).__name__, exc_info=error)
            self._parts.serving.fail("the worker could not start; see its log")

    def _start_up(self) -> None:
        """Load and call back side by side; requests are let in when both have succeeded."""
        parts = self._parts
        name = parts.identity.worker_id
        parts.narrate("http-server", "server_start", f"Worker {name} accepts connections")
        parts.narrate("device-manager", "device_init", f"Using {parts.engine.device_summary}")
        loading = gevent.spawn(self._load)
        if not self._call_back():
            if parts.engine.is_loaded:
                parts.engine.unload()
            parts.serving.fail(f"the hive did not take the callback after {CALLBACK_ATTEMPTS} attempts")
            return
        text = loading.get()
        if text is not None:
            parts.admission.use(text)
            parts.slots.open()
            parts.journal.succeed()
            parts.narrate("llm-worker-rbee", "startup", "Ready for requests")

    def _load(self) -> TextModel | None:
        parts = self._parts
        failure: RbeeError
        try:
            return parts.loader.load()
        except RbeeError as error:
            failure = error
        except Exception as error:
            parts.log.error("internal_error", message=type(error).__name__, exc_info=error)
            failure = InternalError("Loading failed; see the worker's log")
        parts.log.error("loading_failed", message=failure.message, error_code=failure.code)
        parts.narrate("model-loader", "error", failure.message)
        parts.slots.fail()
        parts.journal.fail(failure)
        parts.engine.unload()
        return None

    def _call_back(self) -> bool:
        parts = self._parts
        for attempt in range(1, CALLBACK_ATTEMPTS + 1):
            if attempt > 1:
                gevent.sleep(parts.callback_pause_s)
            parts.narrate("llm-worker-rbee", "callback_ready", "Telling rbee-hive that this worker is up")
            try:
                parts.hive.report_ready(parts.identity.report(parts.slots.state))
            except CallbackFailed as failure:
                parts.log.warning("callback_failed", message=str(failure), attempt=attempt)
            else:
                parts.log.info("callback_done", message="the hive knows this worker", attempt=attempt)
                return True
        return False
