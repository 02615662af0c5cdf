"""The quality of a model's conversion on a node. Starts the node's hive where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask

from rbee.core.events import encode_event
from rbee.core.schemas import NodeModelBody
from rbee.queen.inference import ACTOR
from rbee.queen.relay import hive_answers, relay_quality
from rbee.web.app import read_body
from rbee.web.sse import Emitter

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``POST /v2/models/quality``."""
    routes = flask.Blueprint("quality", __name__)

    @routes.post("/v2/models/quality")
    def quality() -> flask.Response:
        queen.refuse_when_draining()
        body = read_body(NodeModelBody)
        node = queen.nodes.find(body.node)

        def produce(out: Emitter) -> None:
            def narrate(action: str, text: str) -> None:
                out.narrate(ACTOR, action, text)

            hive = queen.fleet.reach(node, narrate)
            with hive_answers(hive), hive.measure_quality(body.model) as events:
                figures = relay_quality(hive, events, out.send)
            out.conclude(encode_event({"done": True, "model": body.model, "quality": figures}))

        return queen.work.respond(produce, must_conclude=True)

    return routes
