"""Where a task would go, and what speaks against each of the other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from rbee.core.errors import RbeeError
from rbee.core.schemas import PlanRequest
from rbee.queen.placement import Wanted, choose_node, why_chosen
from rbee.web.app import read_body

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``POST /v2/plan``."""
    routes = flask.Blueprint("plan", __name__)

    @routes.post("/v2/plan")
    def show() -> dict[str, Any]:
        body = read_body(PlanRequest)
        model = body.model or queen.settings.models.default
        verdicts = queen.scheduler.plan(Wanted(model, body.backend, body.device))
        name: str | None = None
        try:
            chosen = choose_node(verdicts)
            name, why = chosen.node_name, why_chosen(chosen, verdicts)
        except RbeeError as error:
            why = error.message
        nodes = [verdict.listed() for verdict in verdicts]
        return {"model": model, "node": name, "why": why, "nodes": nodes}

    return routes
