"""``GET /v1/logs``: the end of the node's logs as events, and what is added while the client stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path

import flask
import gevent

from rbee.core.errors import WorkerNotFound
from rbee.core.events import KEEP_ALIVE, encode_event
from rbee.hive.log_files import LogFiles, LogLine
from rbee.hive.threads import in_thread
from rbee.web.app import query_flag, query_int
from rbee.web.sse import Emitter, OpenStreams

MAX_LINES = 10_000
POLL_S = 0.2
_EVENTS_PER_PIECE = 50
_WORKER_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


def logs_blueprint(
    log_dir: Path, streams: OpenStreams, worker_ids: Callable[[], Collection[str]]
) -> flask.Blueprint:
    """The route; ``worker_ids`` lists the workers there are, which may have written nothing yet."""
    routes = flask.Blueprint("logs", __name__)

    @routes.get("/v1/logs")
    def logs() -> flask.Response:
        follow = query_flag("follow")
        count = query_int("lines", 100, 0, MAX_LINES)
        worker_id = flask.request.args.get("worker_id")
        if worker_id is not None and not _has_logs(worker_id):
            raise WorkerNotFound(worker_id[:64])

        def produce(emitter: Emitter) -> None:
            # The answer's headers leave with the first bytes; a follower of a quiet log waits for them.
            emitter.send(KEEP_ALIVE)
            files = LogFiles(log_dir, worker_id)
            _send(emitter, in_thread(lambda: files.last_lines(count)))
            while follow:
                gevent.sleep(POLL_S)
                _send(emitter, files.new_lines())

        return streams.respond(produce)

    def _has_logs(worker_id: str) -> bool:
        if not _WORKER_ID.fullmatch(worker_id):
            return False
        return worker_id in worker_ids() or (
            worker_id.startswith("worker-") and (log_dir / f"{worker_id}.log").is_file()
        )

    return routes


def _send(emitter: Emitter, lines: Iterable[LogLine]) -> None:
    """Send one event per line, many in one piece: the reader's bound counts pieces."""
    remaining = iter(lines)
    while piece := b"".join(encode_event(line.wire()) for line in islice(remaining, _EVENTS_PER_PIECE)):
        emitter.send(piece)
