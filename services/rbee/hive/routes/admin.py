"""Ending the hive over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import flask


def admin_blueprint(request_shutdown: Callable[[], None]) -> flask.Blueprint:
    routes = flask.Blueprint("admin", __name__)

    @routes.post("/v1/admin/shutdown")
    def shutdown() -> tuple[flask.Response, int]:
        answer = flask.jsonify(status="shutting_down")
        answer.call_on_close(request_shutdown)
        return answer, 202

    return routes
