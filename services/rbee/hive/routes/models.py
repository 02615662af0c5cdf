"""The models of this node over HTTP: list, download, follow a download, remove, show, verify, prune."""

from __future__ import annotations

from collections.abc import Callable

import flask

from rbee.core.errors import InvalidRequest, RbeeError
from rbee.core.events import encode_event
from rbee.core.references import ModelRef, parse_model_ref
from rbee.core.schemas import ModelBody, PruneBody, VerifyBody
from rbee.hive.models import ModelStore
from rbee.hive.upkeep import ModelUpkeep
from rbee.web.app import read_body
from rbee.web.sse import Emitter, OpenStreams


def models_blueprint(
    store: ModelStore,
    upkeep: ModelUpkeep,
    streams: OpenStreams,
    in_use: Callable[[ModelRef], list[str]],
) -> flask.Blueprint:
    """The routes; ``in_use`` gives the ids of the workers that have a model."""
    routes = flask.Blueprint("models", __name__)

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

        def produce(emitter: Emitter) -> None:
            for event in followed.events():
                # Progress is unnamed in this stream, as the figures carry their stage.
                name = None if event["event"] == "progress" else event["event"]
                emitter.event(event["data"], name)
            try:
                local = followed.wait()
            except RbeeError as error:
                emitter.conclude(encode_event({"stage": "error", **error.envelope()}))
            else:
                emitter.conclude(encode_event({"stage": "complete", "local_path": str(local.path)}))

        return streams.respond(produce, must_conclude=True)

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

        def produce(emitter: Emitter) -> None:
            try:
                upkeep.verify(ref, lambda event: emitter.event(event["data"]))
            except RbeeError as error:
                emitter.conclude(encode_event({"stage": "error", **error.envelope()}))
            else:
                emitter.conclude(encode_event({"stage": "complete"}))

        return streams.respond(produce, must_conclude=True)

    @routes.post("/v1/models/prune")
    def prune() -> flask.Response:
        body = read_body(PruneBody)
        return flask.jsonify(upkeep.prune(body.unused_for_days, dry_run=body.dry_run))

    return routes
