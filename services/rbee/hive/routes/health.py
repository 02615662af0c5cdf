"""Who this hive is and whether it works."""

from __future__ import annotations

from collections.abc import Callable

import flask

from rbee import __version__
from rbee.core.errors import ServiceUnavailable
from rbee.hive.lease import Lease


def health_blueprint(
    node_name: str, lease: Lease, daemon_pid: int, is_ending: Callable[[], bool]
) -> flask.Blueprint:
    routes = flask.Blueprint("health", __name__)

    @routes.get("/v1/health")
    def health() -> flask.Response:
        return flask.jsonify(
            status="stopping" if is_ending() else "alive",
            version=__version__,
            api_version="v1",
            service="rbee-hive",
            node=node_name,
            owner=lease.owner,
            pid=daemon_pid,
        )

    @routes.get("/health/live")
    def live() -> flask.Response:
        return flask.jsonify(status="alive")

    @routes.get("/health/ready")
    def ready() -> flask.Response:
        if is_ending():
            raise ServiceUnavailable("rbee-hive is shutting down")
        return flask.jsonify(status="ready")

    return routes
