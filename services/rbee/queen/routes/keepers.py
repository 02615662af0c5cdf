"""Keepers of an ephemeral queen: one that finds it running joins it for the time of its command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask
from gevent.event import Event

from rbee.queen.keepers import Keepers

if TYPE_CHECKING:
    from rbee.queen.app import Queen


def blueprint(queen: Queen, keepers: Keepers) -> flask.Blueprint:
    """``/v2/keepers/<keeper>``: GET is a stream that is open while the keeper needs the queen."""
    routes = flask.Blueprint("keepers", __name__, url_prefix="/v2/keepers")

    @routes.get("/<keeper>")
    def join(keeper: str) -> flask.Response:
        queen.refuse_when_draining()
        keepers.join(keeper)
        answer = queen.log_readers.respond(lambda _out: _stay())
        answer.call_on_close(lambda: keepers.leave(keeper))
        return answer

    @routes.delete("/<keeper>")
    def leave(keeper: str) -> dict[str, Any]:
        return {"ending": keepers.leave(keeper), "pid": keepers.daemon_pid}

    return routes


def _stay() -> None:
    """Until the client leaves or the queen ends, which kills the greenlet that waits here."""
    Event().wait()
