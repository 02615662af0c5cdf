"""The quality of a conversion against float32 over HTTP: a stream of progress that ends with figures."""

from __future__ import annotations

import flask

from rbee.core.errors import RbeeError
from rbee.core.events import encode_event
from rbee.core.references import parse_model_ref
from rbee.core.schemas import ModelBody
from rbee.core.settings import Settings
from rbee.hive.devices import CPU, MIB, Devices
from rbee.hive.local_models import LocalModel, plan_conversion
from rbee.hive.models import ModelStore
from rbee.hive.shared_work import WireEvent
from rbee.hive.threads import in_thread
from rbee.web.app import read_body
from rbee.web.sse import Emitter, OpenStreams


def quality_blueprint(
    store: ModelStore, streams: OpenStreams, devices: Devices, settings: Settings
) -> flask.Blueprint:
    """``POST /v1/models/quality``: the conversion that a worker on this node's CPU would load."""
    routes = flask.Blueprint("quality", __name__)

    def compute_type(local: LocalModel) -> str:
        memory_bytes = devices.look().ram_available_mb * MIB
        setting, models_dir = settings.worker.compute_type, settings.models_dir
        return in_thread(lambda: plan_conversion(local, models_dir, setting, CPU, memory_bytes)).compute_type

    @routes.post("/v1/models/quality")
    def quality() -> flask.Response:
        ref = parse_model_ref(read_body(ModelBody).model_ref)

        def produce(emitter: Emitter) -> None:
            def tell(event: WireEvent) -> None:
                # Progress is unnamed in this stream, as in that of a download.
                emitter.event(event["data"], None if event["event"] == "progress" else event["event"])

            try:
                store.measure_quality(ref, compute_type, tell)
            except RbeeError as error:
                emitter.conclude(encode_event({"stage": "error", **error.envelope()}))
            else:
                emitter.conclude(encode_event({"stage": "complete"}))

        return streams.respond(produce, must_conclude=True)

    return routes
