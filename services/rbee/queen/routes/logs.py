"""Log lines of a node's hive and workers, relayed while the client reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask
from pydantic import TypeAdapter, ValidationError

from rbee.core.errors import ConnectionTimeout, InvalidRequest
from rbee.core.schemas import Identifier
from rbee.queen.ports import Events
from rbee.queen.registry import Node
from rbee.queen.relay import hive_answers
from rbee.queen.survey import LIST_TIMEOUT_S
from rbee.web.app import query_flag, query_int
from rbee.web.sse import Emitter

if TYPE_CHECKING:
    from rbee.queen.app import Queen
    from rbee.queen.ports import HiveApi

_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)


def blueprint(queen: Queen) -> flask.Blueprint:
    """``GET /v2/logs``."""
    routes = flask.Blueprint("logs", __name__)

    @routes.get("/v2/logs")
    def logs() -> flask.Response:
        queen.refuse_when_draining()
        follow = query_flag("follow")
        lines = query_int("lines", 100, 0, 10_000)
        worker_id = _worker_id()
        node = queen.nodes.find(flask.request.args.get("node", "localhost"))
        hive = _running_hive(queen, node)
        with hive_answers(hive):
            events = hive.logs(follow, lines, worker_id)
        return queen.log_readers.respond(lambda out: _relay(hive, events, out))

    return routes


def _worker_id() -> str | None:
    given = flask.request.args.get("worker_id")
    if given is None:
        return None
    try:
        return _IDENTIFIER.validate_python(given)
    except ValidationError:
        raise InvalidRequest(
            [
                {
                    "field": "worker_id",
                    "constraint": "pattern",
                    "message": "letters, digits and dashes, 1 to 64",
                }
            ]
        ) from None


def _running_hive(queen: Queen, node: Node) -> HiveApi:
    """Raises ``ConnectionTimeout`` where no hive runs: its log is read through it."""
    hive = queen.fleet.look(node, LIST_TIMEOUT_S)
    if hive is None:
        raise ConnectionTimeout(node.ssh_host, node.hive_port, 1, LIST_TIMEOUT_S, node.node_name)
    return hive


def _relay(hive: HiveApi, events: Events, out: Emitter) -> None:
    with hive_answers(hive), events:
        for event in events:
            if event.is_done_marker:
                return
            out.send(event.raw)
