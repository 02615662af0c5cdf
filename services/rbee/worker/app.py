"""The worker's web application: which routes there are and what they work on."""

from __future__ import annotations

from dataclasses import dataclass

import flask

from rbee.web.app import add_metrics_route, create_service_app
from rbee.web.auth import KeyRing
from rbee.web.sse import OpenStreams
from rbee.worker.admission import Admission
from rbee.worker.loading import LoadingJournal
from rbee.worker.metrics import Metrics
from rbee.worker.ports import Engine
from rbee.worker.routes.admin import admin_routes
from rbee.worker.routes.health import health_routes
from rbee.worker.routes.inference import inference_routes
from rbee.worker.routes.loading import loading_routes
from rbee.worker.shutdown import Shutdown
from rbee.worker.slots import Slots

PROGRAM = "llm-worker-rbee"


@dataclass(frozen=True)
class AppPorts:
    """What the routes work on."""

    worker_id: str
    keys: KeyRing
    slots: Slots
    engine: Engine
    journal: LoadingJournal
    admission: Admission
    metrics: Metrics
    shutdown: Shutdown
    inference_streams: OpenStreams
    loading_streams: OpenStreams
    cancel_ack_s: float
    body_bytes: int
    invalid_per_second: int


def create_app(ports: AppPorts) -> flask.Flask:
    """The application of one worker."""
    app = create_service_app(
        PROGRAM, ports.keys, body_bytes=ports.body_bytes, invalid_per_second=ports.invalid_per_second
    )
    app.register_blueprint(health_routes(ports.worker_id, ports.slots, ports.engine, ports.journal))
    app.register_blueprint(loading_routes(ports.journal, ports.loading_streams))
    app.register_blueprint(inference_routes(ports.admission, ports.inference_streams, ports.cancel_ack_s))
    app.register_blueprint(admin_routes(ports.shutdown))
    add_metrics_route(app, ports.metrics.registry)
    return app
