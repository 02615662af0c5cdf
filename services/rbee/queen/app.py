"""The queen's application: its parts, and the table of its routes."""

from __future__ import annotations

import flask

from rbee.core.errors import ServiceUnavailable
from rbee.core.settings import Settings
from rbee.queen.fleet import Fleet
from rbee.queen.inference import TaskFlow
from rbee.queen.keepers import Keepers
from rbee.queen.known_workers import KnownWorkers
from rbee.queen.metrics import Metrics
from rbee.queen.ports import NodeLogin, NodeTransport
from rbee.queen.registry import Nodes
from rbee.queen.routes import (
    health,
    keepers,
    logs,
    models,
    nodes,
    orchestrator,
    plan,
    quality,
    registry,
    tasks,
    workers,
)
from rbee.queen.scheduling import Scheduler
from rbee.queen.tasks import OpenTasks
from rbee.web.app import add_metrics_route, create_service_app
from rbee.web.auth import KeyRing
from rbee.web.sse import OpenStreams


class Queen:
    """Everything the routes work with."""

    def __init__(
        self,
        settings: Settings,
        version: str,
        keys: KeyRing,
        nodes: Nodes,
        fleet: Fleet,
        transport: NodeTransport,
        login: NodeLogin,
        keepers: Keepers | None = None,
    ) -> None:
        timing = settings.timing
        self.settings = settings
        self.version = version
        self.keys = keys
        self.nodes = nodes
        self.fleet = fleet
        self.transport = transport
        self.login = login
        self.keepers = keepers
        """Of an ephemeral queen; None where the queen stays until it is told to end."""
        self.metrics = Metrics()
        self.tasks = OpenTasks(settings.queen.max_pending)
        self.scheduler = Scheduler(fleet)
        self.flow = TaskFlow(fleet, self.scheduler, KnownWorkers(), timing, self.metrics)
        self.work = OpenStreams("queen-rbee", timing.sse_keepalive_s)
        """Tasks and pulls: a shutdown lets them finish for a while."""
        self.log_readers = OpenStreams("queen-rbee", timing.sse_keepalive_s)
        """A shutdown ends these at once, and those of keepers that have joined."""
        self.is_draining = False
        self.metrics.watch(lambda: len(self.tasks), self.tasks.capacity, lambda: len(fleet.owned))

    def refuse_when_draining(self) -> None:
        """Raise ``ServiceUnavailable`` once the queen is on its way out."""
        if self.is_draining:
            raise ServiceUnavailable("The queen is shutting down")


def create_app(queen: Queen) -> flask.Flask:
    """The WSGI application over ``queen``."""
    app = create_service_app(
        "queen-rbee",
        queen.keys,
        body_bytes=queen.settings.limits.body_bytes,
        invalid_per_second=queen.settings.limits.invalid_per_second,
        on_error=queen.metrics.count_error,
    )
    for routes in (health, registry, nodes, plan, tasks, workers, models, quality, logs, orchestrator):
        app.register_blueprint(routes.blueprint(queen))
    if queen.keepers is not None:
        app.register_blueprint(keepers.blueprint(queen, queen.keepers))
    add_metrics_route(app, queen.metrics.registry)
    return app
