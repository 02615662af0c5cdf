"""The hive's application: the table of its routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask

from rbee.core.references import ModelRef
from rbee.hive.routes.admin import admin_blueprint
from rbee.hive.routes.capabilities import capabilities_blueprint
from rbee.hive.routes.health import health_blueprint
from rbee.hive.routes.lease import lease_blueprint
from rbee.hive.routes.logs import logs_blueprint
from rbee.hive.routes.models import models_blueprint
from rbee.hive.routes.workers import READY_PATH, workers_blueprint
from rbee.web.app import add_metrics_route, create_service_app

if TYPE_CHECKING:
    from rbee.hive.service import Hive

COMPONENT = "rbee-hive"


def create_app(hive: Hive) -> flask.Flask:
    """The WSGI application over ``hive``."""
    settings, store = hive.settings, hive.ports.store
    app = create_service_app(
        COMPONENT,
        hive.keys,
        body_bytes=settings.limits.body_bytes,
        invalid_per_second=settings.limits.invalid_per_second,
        own_key_paths=frozenset({READY_PATH}),
        on_error=hive.metrics.answered_error,
    )

    def in_use(ref: ModelRef) -> list[str]:
        return hive.registry.using(str(ref))

    for routes in (
        health_blueprint(
            settings.pool.name, hive.lease, hive.facts.daemon_pid, lambda: hive.cascade.has_begun
        ),
        capabilities_blueprint(hive.ports.devices, settings.pool.name, settings.models_dir),
        workers_blueprint(hive.registry, hive.supervisor, hive.spawner, hive.registration, hive.streams),
        models_blueprint(store, hive.upkeep, hive.streams, in_use, hive.ports.devices, settings),
        logs_blueprint(settings.log_dir, hive.streams, hive.worker_ids),
        lease_blueprint(hive.lease),
        admin_blueprint(hive.facts.request_shutdown),
    ):
        app.register_blueprint(routes)
    add_metrics_route(app, hive.metrics.registry)

    @app.after_request
    def measure(answer: flask.Response) -> flask.Response:
        hive.metrics.answered(flask.g.started)
        return answer

    return app
