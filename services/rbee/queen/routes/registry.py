"""The node registry: add and update after a login that worked, list with live status, show, remove."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import flask
from pydantic import TypeAdapter, ValidationError

from rbee.core.errors import InvalidRequest, NodeProtected
from rbee.core.schemas import NodeAddRequest, NodeNameBody, NodePath, validate
from rbee.queen import survey
from rbee.queen.registry import LOCALHOST, Node, NodeStatus
from rbee.web.app import parse_json, read_body

if TYPE_CHECKING:
    from rbee.queen.app import Queen

_NODE_PATH: TypeAdapter[str] = TypeAdapter(NodePath)
_REMEMBERED = ("builtin", "status", "last_connected_unix", "last_error")
"""Fields of a record that the queen finds out itself."""


def blueprint(queen: Queen) -> flask.Blueprint:
    """``/v2/registry/beehives/…``."""
    routes = flask.Blueprint("registry", __name__, url_prefix="/v2/registry/beehives")

    @routes.post("/add")
    def add() -> dict[str, Any]:
        node = _node_of(read_body(NodeAddRequest))
        queen.nodes.refuse_taken(node.node_name)
        queen.login.check(node)
        queen.nodes.add(_connected(node))
        return _done(node.node_name, "added successfully")

    @routes.post("/update")
    def update() -> dict[str, Any]:
        changes = parse_json(flask.request.get_data(cache=False) or b"{}")
        if not isinstance(changes, dict):
            raise InvalidRequest([{"field": "body", "constraint": "type", "message": "must be an object"}])
        name = validate(NodeNameBody, {"node_name": changes.get("node_name")}).node_name
        if name == LOCALHOST:
            raise NodeProtected(name)
        stored = {k: v for k, v in queen.nodes.find(name).record().items() if k not in _REMEMBERED}
        node = _node_of(validate(NodeAddRequest, {**stored, **changes}))
        queen.login.check(node)
        queen.nodes.replace(_connected(node))
        return _done(name, "updated successfully")

    @routes.get("/list")
    def listing() -> dict[str, Any]:
        survey.refresh_status(queen.fleet)
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


def _done(name: str, what: str) -> dict[str, Any]:
    return {"success": True, "message": f"Node '{name}' {what}", "node_name": name}


def _connected(node: Node) -> Node:
    return replace(node, status=NodeStatus.REACHABLE, last_connected_unix=int(time.time()))


def _node_of(body: NodeAddRequest) -> Node:
    """The node as it will be stored; a ``~`` in the install path is the home of the node's user."""
    fields = body.model_dump()
    home = "/root" if body.ssh_user == "root" else f"/home/{body.ssh_user}"
    path = body.install_path
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    try:
        fields["install_path"] = _NODE_PATH.validate_python(path)
    except ValidationError:
        message = "must be an absolute path of letters, digits and . _ - /"
        raise InvalidRequest([{"field": "install_path", "constraint": "path", "message": message}]) from None
    return Node(**fields)
