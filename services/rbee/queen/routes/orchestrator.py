"""Notices from hives that know this queen's URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from rbee.core.logs import get_logger
from rbee.core.schemas import WorkerReadyNotice
from rbee.web.app import read_body

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:  # noqa: ARG001 (every factory takes the queen)
    """``POST /v1/orchestrator/worker-ready``."""
    routes = flask.Blueprint("orchestrator", __name__)
    log = get_logger("queen-rbee")

    @routes.post("/v1/orchestrator/worker-ready")
    def worker_ready() -> dict[str, Any]:
        notice = read_body(WorkerReadyNotice)
        # Only told: every decision asks the hives, so that no notice can make the queen's view stale.
        log.info(
            "worker_ready",
            message="a hive reports a worker",
            worker_id=notice.worker_id,
            model_ref=notice.model_ref,
            device=f"{notice.backend}:{notice.device}",
        )
        return {"message": "Notice taken"}

    return routes
