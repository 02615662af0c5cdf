"""The models of this node over HTTP: list, download, follow, remove, show, verify, measure, prune."""

from __future__ import annotations

from collections.abc import Callable

import flask

from rbee.core.errors import InvalidRequest, RbeeError
from rbee.core.events import encode_event
from rbee.core.references import ModelRef, parse_model_ref
from rbee.core.schemas import ModelBody, PruneBody, VerifyBody
from rbee.core.settings import Settings
from rbee.hive.devices import CPU, MIB, Devices
from rbee.hive.local_models import LocalModel, plan_conversion
from rbee.hive.models import ModelStore
from rbee.hive.shared_work import OnEvent, WireEvent
from rbee.hive.threads import in_thread
from rbee.hive.upkeep import ModelUpkeep
from rbee.web.app import read_body
from rbee.web.sse import Emitter, OpenStreams


def models_blueprint(
    store: ModelStore,
    upkeep: ModelUpkeep,
    streams: OpenStreams,
    in_use: Callable[[ModelRef], list[str]],
    devices: Devices,
    settings: Settings,
) -> flask.Blueprint:
    """The routes; ``in_use`` gives the ids of the workers that have a model."""
    routes = flask.Blueprint("models", __name__)

    def follow(work: Callable[[OnEvent], dict[str, str]]) -> flask.Response:
        """A stream of what ``work`` tells, ended by ``complete`` with what it returns, or by its error."""

        def produce(emitter: Emitter) -> None:
            def tell(event: WireEvent) -> None:
                # Progress is unnamed in these streams, as the figures carry their stage.
                emitter.event(event["data"], None if event["event"] == "progress" else event["event"])

            try:
                result = work(tell)
            except RbeeError as error:
                emitter.conclude(encode_event({"stage": "error", **error.envelope()}))
            else:
                emitter.conclude(encode_event({"stage": "complete", **result}))

        return streams.respond(produce, must_conclude=True)

    def compute_type(local: LocalModel) -> str:
        """What a worker on this node's CPU would load."""
        memory_bytes = devices.look().ram_available_mb * MIB
        setting, models_dir = settings.worker.compute_type, settings.models_dir
        return in_thread(lambda: plan_conversion(local, models_dir, setting, CPU, memory_bytes)).compute_type

    @routes.get("/v1/models")
    def models() -> flask.Response:
        return flask.jsonify(models=store.records())

    @routes.post("/v1/models/download")
    def download() -> flask.Response:
        ref = parse_model_ref(read_body(ModelBody).model_ref)
        started = store.start_download(ref)
        path = started.local_path
        return flask.jsonify(download_id=started.id, local_path=None if path is None else str(path))

    @routes.get("/v1/models/download/progress")
    def progress() -> flask.Response:
        download_id = flask.request.args.get("id")
        if not download_id:
            raise InvalidRequest([{"field": "id", "constraint": "required", "message": "id is required"}])
        followed = store.download(download_id[:64])

        def work(tell: OnEvent) -> dict[str, str]:
            for event in followed.events():
                tell(event)
            return {"local_path": str(followed.wait().path)}

        return follow(work)

    @routes.post("/v1/models/remove")
    def remove() -> flask.Response:
        ref = parse_model_ref(read_body(ModelBody).model_ref)
        store.remove(ref, in_use)
        return flask.jsonify(message=f"Model '{ref}' removed")

    @routes.get("/v1/models/show")
    def show() -> flask.Response:
        return flask.jsonify(upkeep.describe(parse_model_ref(flask.request.args.get("model_ref", ""))))

    @routes.post("/v1/models/verify")
    def verify() -> flask.Response:
        text = read_body(VerifyBody).model_ref
        ref = None if text is None else parse_model_ref(text)
        if ref is not None:
            upkeep.require(ref)

        def work(tell: OnEvent) -> dict[str, str]:
            upkeep.verify(ref, tell)
            return {}

        return follow(work)

    @routes.post("/v1/models/quality")
    def quality() -> flask.Response:
        ref = parse_model_ref(read_body(ModelBody).model_ref)

        def work(tell: OnEvent) -> dict[str, str]:
            store.measure_quality(ref, compute_type, tell)
            return {}

        return follow(work)

    @routes.post("/v1/models/prune")
    def prune() -> flask.Response:
        body = read_body(PruneBody)
        return flask.jsonify(upkeep.prune(body.unused_for_days, dry_run=body.dry_run))

    return routes
