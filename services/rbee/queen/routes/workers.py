"""Workers of the whole fleet, asked live from their hives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from rbee.core.schemas import WorkerIdBody
from rbee.queen import survey
from rbee.web.app import read_body

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``/v2/workers/…``."""
    routes = flask.Blueprint("workers", __name__, url_prefix="/v2/workers")

    @routes.get("/list")
    def listing() -> dict[str, Any]:
        found = survey.list_workers(queen.fleet)
        return {
            "workers": [survey.as_listed(*entry) for entry in found.workers],
            "unreachable": found.unreachable,
        }

    @routes.get("/health")
    def health() -> dict[str, Any]:
        node = queen.nodes.find(flask.request.args.get("node", "localhost"))
        timing = queen.settings.timing
        probes = survey.probe_workers(queen.fleet, node, timing.health_probe_timeout_s)
        return {
            "status": "ok",
            "workers": [
                {"worker_id": probe.worker_id, "state": probe.state, "ready": probe.is_ready}
                for probe in probes
            ],
        }

    @routes.post("/shutdown")
    def shutdown() -> dict[str, Any]:
        worker_id = read_body(WorkerIdBody).worker_id
        survey.end_worker(queen.fleet, worker_id)
        return {"success": True, "message": f"Shutdown command sent to worker '{worker_id}'"}

    return routes
