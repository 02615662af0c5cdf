"""What the worker is and whether it can take a request."""

from __future__ import annotations

from typing import Any

import flask

from rbee import __version__
from rbee.core.lifecycle import WorkerState
from rbee.worker.loading import LoadingJournal
from rbee.worker.ports import Engine
from rbee.worker.slots import Slots

PROGRESS_PATH = "/v1/loading/progress"


def health_routes(worker_id: str, slots: Slots, engine: Engine, journal: LoadingJournal) -> flask.Blueprint:
    routes = flask.Blueprint("health", __name__)

    @routes.get("/health")
    @routes.get("/v1/health")
    def health() -> dict[str, Any]:
        view = slots.view()
        return {
            "status": "unhealthy" if view.state is WorkerState.ERROR else "healthy",
            "version": __version__,
            "api_version": "v1",
            "service": "llm-worker-rbee",
            "worker_id": worker_id,
            **view.fields(),
            "model_loaded": engine.is_loaded,
            "vram_bytes": engine.memory_bytes,
        }

    @routes.get("/v1/ready")
    def ready() -> dict[str, Any]:
        view = slots.view()
        answer: dict[str, Any] = {
            "ready": view.state is WorkerState.IDLE,
            **view.fields(),
            "model_loaded": engine.is_loaded,
        }
        if view.state is WorkerState.LOADING:
            answer["progress_url"] = PROGRESS_PATH
        if journal.error is not None:
            answer["error"] = journal.error.fields()
        return answer

    return routes
