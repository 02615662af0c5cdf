"""The workers of this node over HTTP: list, spawn, follow a start, register, end."""

from __future__ import annotations

import flask

from rbee.core.errors import WorkerNotFound
from rbee.core.schemas import SpawnRequest, WorkerReadyCallback
from rbee.hive.registration import Registration
from rbee.hive.spawning import Spawner
from rbee.hive.startup import StartupLog
from rbee.hive.supervision import Supervisor
from rbee.hive.workers import EndReason, WorkerRegistry
from rbee.web.app import read_body
from rbee.web.sse import Emitter, OpenStreams

READY_PATH = "/v1/workers/ready"
LIST_REFRESH_S = 1.0


def workers_blueprint(
    registry: WorkerRegistry,
    supervisor: Supervisor,
    spawner: Spawner,
    registration: Registration,
    streams: OpenStreams,
) -> flask.Blueprint:
    routes = flask.Blueprint("workers", __name__)

    @routes.get("/v1/workers/list")
    def workers() -> flask.Response:
        records = supervisor.refresh(LIST_REFRESH_S)
        return flask.jsonify(workers=[record.wire() for record in records])

    @routes.post("/v1/workers/spawn")
    def spawn() -> flask.Response:
        return flask.jsonify(spawner.spawn(read_body(SpawnRequest)).wire())

    @routes.get("/v1/workers/<worker_id>/narration")
    def narration(worker_id: str) -> flask.Response:
        startup = _startup_of(worker_id)

        def produce(emitter: Emitter) -> None:
            for raw in startup.follow():
                emitter.send(raw)

        return streams.respond(produce)

    @routes.post(READY_PATH)
    def ready() -> flask.Response:
        callback = read_body(WorkerReadyCallback)
        registration.accept(callback, flask.request.headers.get("Authorization"))
        return flask.jsonify(message="Worker registered as ready")

    @routes.delete("/v1/workers/<worker_id>")
    def end(worker_id: str) -> tuple[flask.Response, int]:
        supervisor.stop(worker_id[:64], EndReason.REQUESTED)
        return flask.jsonify(message=f"Worker '{worker_id}' is shutting down"), 202

    def _startup_of(worker_id: str) -> StartupLog:
        try:
            return registry.seat(worker_id[:64]).startup
        except WorkerNotFound:
            return supervisor.failed_starts.get(worker_id[:64])

    return routes
