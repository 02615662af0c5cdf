"""The owner of this hive renews its lease."""

from __future__ import annotations

import flask

from rbee.core.schemas import LeaseRequest
from rbee.hive.lease import Lease
from rbee.web.app import read_body


def lease_blueprint(lease: Lease) -> flask.Blueprint:
    routes = flask.Blueprint("lease", __name__)

    @routes.post("/v1/lease")
    def renew() -> flask.Response:
        body = read_body(LeaseRequest)
        expires = lease.renew(body.owner, body.ttl_seconds)
        return flask.jsonify(owner=lease.owner, expires_unix=int(expires))

    return routes
