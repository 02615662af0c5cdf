"""Taking nodes out of service and back: cordon, drain, uncordon; and the roll-out under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask
import gevent

from rbee.core.logs import get_logger
from rbee.core.schemas import CordonRequest, DrainRequest, RolloutRequest
from rbee.queen import survey
from rbee.queen.draining import look_at, wait_until_quiet
from rbee.web.app import read_body

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen) -> flask.Blueprint:
    """``/v2/nodes…`` and ``/v2/rollout``."""
    routes = flask.Blueprint("nodes", __name__, url_prefix="/v2")
    log = get_logger("queen-rbee")

    @routes.get("/nodes")
    def listing() -> dict[str, Any]:
        survey.refresh_status(queen.fleet)
        looks = [gevent.spawn(look_at, queen.fleet, queen.tasks, node) for node in queen.nodes.all()]
        rollout = queen.nodes.cordons.rollout
        return {
            "nodes": [look.get().listed() for look in looks],
            "rollout": None if rollout is None else rollout.listed(),
        }

    @routes.get("/nodes/<name>")
    def show(name: str) -> dict[str, Any]:
        return look_at(queen.fleet, queen.tasks, queen.nodes.find(name)).listed()

    @routes.post("/nodes/<name>/cordon")
    def cordon(name: str) -> dict[str, Any]:
        node, reason = queen.nodes.find(name), read_body(CordonRequest).reason
        queen.nodes.cordons.set(name, reason)
        log.info("node_cordoned", message=reason, node=name)
        return look_at(queen.fleet, queen.tasks, node).listed()

    @routes.post("/nodes/<name>/drain")
    def drain(name: str) -> dict[str, Any]:
        node, body = queen.nodes.find(name), read_body(DrainRequest)
        queen.nodes.cordons.set(name, body.reason)
        log.info("node_draining", message=body.reason, node=name, tasks=queen.tasks.on_node(name))
        activity = wait_until_quiet(queen.fleet, queen.tasks, node, body.timeout_seconds)
        log.info("node_drained", message="over", node=name, is_quiet=activity.is_quiet)
        return {**activity.listed(), "drained": activity.is_quiet}

    @routes.post("/nodes/<name>/uncordon")
    def uncordon(name: str) -> dict[str, Any]:
        node = queen.nodes.find(name)
        if queen.nodes.cordons.lift(name):
            log.info("node_uncordoned", message="takes tasks again", node=name)
        return look_at(queen.fleet, queen.tasks, node).listed()

    @routes.post("/rollout")
    def begin() -> dict[str, Any]:
        body = read_body(RolloutRequest)
        rollout = queen.nodes.cordons.begin_rollout(body.version, body.operator)
        log.info("rollout_began", message=body.operator, version=body.version)
        return {"rollout": rollout.listed()}

    @routes.delete("/rollout")
    def end() -> tuple[str, int]:
        if queen.nodes.cordons.end_rollout():
            log.info("rollout_ended", message="versions must agree again")
        return "", 204

    return routes
