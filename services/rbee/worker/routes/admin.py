"""Ending the worker."""

from __future__ import annotations

import flask

from rbee.core.schemas import ShutdownRequest
from rbee.web.app import read_body
from rbee.worker.shutdown import Shutdown


def admin_routes(shutdown: Shutdown) -> flask.Blueprint:
    routes = flask.Blueprint("admin", __name__)

    @routes.post("/v1/admin/shutdown")
    def shut_down() -> tuple[dict[str, str], int]:
        body = read_body(ShutdownRequest)
        stated = body.timeout_seconds if "timeout_seconds" in body.model_fields_set else None
        shutdown.request(stated if body.graceful else 0.0)
        return {"status": "draining"}, 202

    return routes
