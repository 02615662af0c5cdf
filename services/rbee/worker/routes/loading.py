"""The progress of loading, as an event stream."""

from __future__ import annotations

import flask

from rbee.web.sse import Emitter, OpenStreams
from rbee.worker.loading import LoadingJournal
from rbee.worker.routes.health import PROGRESS_PATH


def loading_routes(journal: LoadingJournal, streams: OpenStreams) -> flask.Blueprint:
    routes = flask.Blueprint("loading", __name__)

    @routes.get(PROGRESS_PATH)
    def progress() -> flask.Response:
        def produce(emitter: Emitter) -> None:
            for event in journal.follow():
                emitter.event(event)

        return streams.respond(produce)

    return routes
