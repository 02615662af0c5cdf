"""Models on a node: list, fetch ahead of use, remove. Starts the node's hive where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from rbee.core.events import encode_event
from rbee.core.schemas import NodeModelBody, PullRequest
from rbee.queen.fleet import silently
from rbee.queen.inference import ACTOR
from rbee.queen.readiness import provide_model
from rbee.queen.relay import hive_answers
from rbee.web.app import read_body
from rbee.web.sse import Emitter

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``/v2/models/…``."""
    routes = flask.Blueprint("models", __name__, url_prefix="/v2/models")

    @routes.get("/list")
    def listing() -> dict[str, Any]:
        node = queen.nodes.find(flask.request.args.get("node", "localhost"))
        hive = queen.fleet.reach(node, silently)
        with hive_answers(hive):
            return {"models": hive.models()}

    @routes.post("/pull")
    def pull() -> flask.Response:
        queen.refuse_when_draining()
        body = read_body(PullRequest)
        node = queen.nodes.find(body.node)
        model = body.model or queen.settings.models.default

        def produce(out: Emitter) -> None:
            def narrate(action: str, text: str) -> None:
                out.narrate(ACTOR, action, text)

            hive = queen.fleet.reach(node, narrate)
            path = provide_model(hive, model, out.send)
            out.conclude(encode_event({"done": True, "model": model, "local_path": path}))

        return queen.work.respond(produce, must_conclude=True)

    @routes.post("/remove")
    def remove() -> dict[str, Any]:
        body = read_body(NodeModelBody)
        hive = queen.fleet.reach(queen.nodes.find(body.node), silently)
        with hive_answers(hive):
            hive.remove_model(body.model)
        return {"success": True, "message": f"Model '{body.model}' removed"}

    return routes
