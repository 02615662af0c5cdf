"""Inference requests: token streams, and their cancellation."""

from __future__ import annotations

import flask

from rbee.core.logs import bind_request
from rbee.core.schemas import InferenceRequest
from rbee.web.app import read_body
from rbee.web.sse import OpenStreams
from rbee.worker.admission import Admission


def inference_routes(admission: Admission, streams: OpenStreams, cancel_ack_s: float) -> flask.Blueprint:
    routes = flask.Blueprint("inference", __name__)

    @routes.post("/v1/inference")
    def infer() -> flask.Response:
        inference = admission.admit(read_body(InferenceRequest))
        bind_request(request_id=inference.request_id)
        try:
            answer = streams.respond(
                inference.produce, headers={"X-Request-Id": inference.request_id}, must_conclude=True
            )
        except BaseException:
            inference.abandon()
            raise
        answer.call_on_close(inference.abandon)
        return answer

    @routes.delete("/v1/inference/<request_id>")
    def cancel(request_id: str) -> tuple[str, int]:
        admission.cancel(request_id, cancel_ack_s)
        return "", 204

    return routes
