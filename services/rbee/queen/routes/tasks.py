"""Tasks: accept one and stream its answer; cancel one."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import flask

from rbee.core.errors import RbeeError, RequestCanceled, VersionMismatch
from rbee.core.logs import bind_request
from rbee.core.schemas import TaskRequest
from rbee.queen.task import Task
from rbee.queen.tasks import TaskCanceled
from rbee.web.app import read_body
from rbee.web.sse import ClientGone, Emitter

if TYPE_CHECKING:
    from rbee.queen.app import Queen

_CANCEL_MARGIN_S = 1.0


def blueprint(queen: Queen) -> flask.Blueprint:
    """``POST /v2/tasks`` and ``DELETE /v2/tasks/<request_id>``."""
    routes = flask.Blueprint("tasks", __name__, url_prefix="/v2/tasks")

    @routes.post("")
    def create() -> flask.Response:
        queen.refuse_when_draining()
        queen.tasks.refuse_when_full()
        task = _accept(queen, read_body(TaskRequest))
        return queen.work.respond(
            lambda out: _carry_out(queen, task, out),
            headers={"X-Request-Id": task.request_id},
            must_conclude=True,
        )

    @routes.delete("/<request_id>")
    def cancel(request_id: str) -> tuple[str, int]:
        queen.tasks.cancel(request_id, queen.settings.timing.cancel_ack_timeout_s + _CANCEL_MARGIN_S)
        return "", 204

    return routes


def _accept(queen: Queen, body: TaskRequest) -> Task:
    """The decisions that need no hive.

    Raises:
        VersionMismatch, NodeNotFound, NodeCordoned
    """
    version = flask.request.headers.get("X-Rbee-Version")
    if version is not None and not queen.fleet.is_compatible(version, queen.version):
        raise VersionMismatch(version[:64], queen_version=queen.version)
    node = None if body.node is None else queen.nodes.find(body.node)
    if node is not None and not body.ignore_cordon:
        queen.nodes.cordons.refuse(node.node_name)
    return Task(
        request_id=str(uuid.uuid4()),
        node=node,
        model_ref=body.model or queen.settings.models.default,
        request=body,
        client_version=version,
        arrived=time.monotonic(),
    )


def _carry_out(queen: Queen, task: Task, out: Emitter) -> None:
    bind_request(request_id=task.request_id)
    outcome = "failed"
    try:
        place = queen.tasks.enter(task.request_id)
        try:
            terminal, code = queen.flow.run(task, out, place)
        finally:
            queen.tasks.leave(place)
        outcome = "completed" if code is None else "canceled" if code == "REQUEST_CANCELED" else "failed"
        if code is not None:
            queen.metrics.count_error(code)
        out.conclude(terminal)
    except TaskCanceled:
        outcome = "canceled"
        raise RequestCanceled(task.request_id) from None
    except ClientGone:
        outcome = "canceled"
        raise
    except RbeeError as error:
        outcome = "canceled" if isinstance(error, RequestCanceled) else "failed"
        queen.metrics.count_error(error.code)
        raise
    finally:
        queen.metrics.tasks.labels(outcome=outcome).inc()
