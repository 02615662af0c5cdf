"""Models on a node: list, show, fetch, verify, prune, remove. Starts its hive where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from rbee.core.events import encode_event
from rbee.core.references import parse_model_ref
from rbee.core.schemas import NodeModelBody, NodePruneBody, NodeVerifyBody, PullRequest
from rbee.queen.fleet import silently
from rbee.queen.inference import ACTOR
from rbee.queen.readiness import provide_model
from rbee.queen.relay import hive_answers, relay_verification
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

    @routes.get("/show")
    def show() -> dict[str, Any]:
        model = str(parse_model_ref(flask.request.args.get("model", "")))
        hive = queen.fleet.reach(queen.nodes.find(flask.request.args.get("node", "localhost")), silently)
        with hive_answers(hive):
            return {"model": hive.model(model)}

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

    @routes.post("/verify")
    def verify() -> flask.Response:
        queen.refuse_when_draining()
        body = read_body(NodeVerifyBody)
        node = queen.nodes.find(body.node)

        def produce(out: Emitter) -> None:
            def narrate(action: str, text: str) -> None:
                out.narrate(ACTOR, action, text)

            hive = queen.fleet.reach(node, narrate)
            with hive_answers(hive), hive.verify_models(body.model) as events:
                verdicts = relay_verification(hive, events, out.send)
            out.conclude(encode_event({"done": True, "models": verdicts}))

        return queen.work.respond(produce, must_conclude=True)

    @routes.post("/prune")
    def prune() -> dict[str, Any]:
        body = read_body(NodePruneBody)
        hive = queen.fleet.reach(queen.nodes.find(body.node), silently)
        with hive_answers(hive):
            return hive.prune_models(body.unused_for_days, body.dry_run)

    @routes.post("/remove")
    def remove() -> dict[str, Any]:
        body = read_body(NodeModelBody)
        hive = queen.fleet.reach(queen.nodes.find(body.node), silently)
        with hive_answers(hive):
            hive.remove_model(body.model)
        return {"success": True, "message": f"Model '{body.model}' removed"}

    return routes
