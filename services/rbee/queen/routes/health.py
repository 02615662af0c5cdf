"""Whether the queen answers, and of which version it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``/health``, ``/v1/health``."""
    routes = flask.Blueprint("health", __name__)

    @routes.get("/health")
    @routes.get("/v1/health")
    def health() -> dict[str, Any]:
        body = {"status": "ok", "version": queen.version, "service": "queen-rbee"}
        return body if queen.keepers is None else {**body, "ephemeral": True}

    return routes
