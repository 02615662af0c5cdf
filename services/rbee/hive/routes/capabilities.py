"""``GET /v1/capabilities``: what this node has to run models on."""

from __future__ import annotations

from pathlib import Path

import flask

from rbee.hive.devices import Devices


def capabilities_blueprint(devices: Devices, node_name: str, models_dir: Path) -> flask.Blueprint:
    """The route; every request looks at the machine anew."""
    routes = flask.Blueprint("capabilities", __name__)

    @routes.get("/v1/capabilities")
    def capabilities() -> flask.Response:
        return flask.jsonify(devices.capabilities(node_name, models_dir))

    return routes
