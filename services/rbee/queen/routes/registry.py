"""The node registry: list, show, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from rbee.core.schemas import NodeNameBody
from rbee.web.app import read_body

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``/v2/registry/beehives/…``."""
    routes = flask.Blueprint("registry", __name__, url_prefix="/v2/registry/beehives")

    @routes.get("/list")
    def listing() -> dict[str, Any]:
        return {"nodes": [node.record() for node in queen.nodes.all()]}

    @routes.get("/<name>")
    def show(name: str) -> dict[str, Any]:
        return queen.nodes.find(name).record()

    @routes.post("/remove")
    def remove() -> dict[str, Any]:
        name = read_body(NodeNameBody).node_name
        queen.nodes.remove(name)
        return {"success": True, "message": f"Node '{name}' removed from registry"}

    return routes
