"""Runs one inference through the queen: tokens out as they come, and one outcome whatever happens."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rbee_keeper.narration import Narrator
from rbee_keeper.progress import ProgressDisplay

if TYPE_CHECKING:
    from rbee.core.client import EventStream
    from rbee.core.events import Event
    from rbee_keeper.queen_connection import QueenConnection

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_POLL_S = 0.02
LOST_STREAM = "SSE stream closed unexpectedly"
_SEE_THE_LOG = (
    "Run the command again; when it happens again, look into logs/queen-rbee.log of the queen's RBEE_HOME"
)


@dataclass
class InferenceState:
    """What is known of a running inference; filled in as its stream is read."""

    request_id: str | None = None
    started: Mapping[str, Any] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    done: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_over(self) -> bool:
        """Whether the terminal event has come."""
        return self.done is not None or self.error is not None

    def fail(self, code: str, message: str, suggestion: str | None = None) -> None:
        """End it by an error found on this side, unless it has ended already."""
        if not self.is_over:
            self.error = {"code": code, "message": message, "details": {"tokens_generated": len(self.pieces)}}
            if suggestion is not None:
                self.error["suggestion"] = suggestion

    def mark_canceled(self) -> None:
        """End it by the user's own wish, unless it has ended already."""
        self.fail("REQUEST_CANCELED", "Request canceled")


class InferenceRun:
    """One ``POST /v2/tasks`` and its stream.

    Args:
        queen: where to send it.
        body: of the request.
        on_token: gets the text of each token as it comes.
    """

    def __init__(
        self,
        queen: QueenConnection,
        body: Mapping[str, Any],
        narrator: Narrator,
        progress: ProgressDisplay,
        on_token: Callable[[str], None],
    ) -> None:
        self._queen = queen
        self._body = body
        self._narrator = narrator
        self._progress = progress
        self._on_token = on_token
        self._stream: EventStream | None = None
        self.state = InferenceState()

    def run(self) -> None:
        """Read the stream to its end; the outcome, good or bad, is in ``state``. Call ``close`` afterwards.

        Raises:
            RbeeError, KeeperFailure: the queen refused the request, or was not reached.
            OutputClosed: ``on_token`` found nobody reading.
        """
        self._stream = self._queen.stream("POST", "/v2/tasks", body=self._body)
        identity = self._stream.headers.get("X-Request-Id", "")
        # It becomes part of a file name and of a URL.
        self.state.request_id = identity if _REQUEST_ID.fullmatch(identity) else None
        self._read(self._stream)

    def close(self) -> None:
        """Close the connection; after ``cancel``, whose acknowledgement tells more than a lost client."""
        if self._stream is not None:
            self._stream.close()

    def _read(self, stream: EventStream) -> None:
        from rbee.core.client import TransportFailure

        try:
            for event in stream:
                if event.is_done_marker:
                    break
                self._take(event)
        except TransportFailure as failure:
            if failure.kind == "timeout":
                self.state.fail(
                    "SERVICE_UNAVAILABLE",
                    "No sign of life from queen-rbee; the stream was given up",
                    "Look whether it still runs: rbee-keeper queen status",
                )
        # A stream may only end after its terminal event; any other end is a loss, never a success.
        self.state.fail("WORKER_CRASHED", LOST_STREAM)

    def _take(self, event: Event) -> None:
        try:
            data = event.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            self.state.fail(
                "INTERNAL_ERROR", "The stream holds an event that is not a JSON object", _SEE_THE_LOG
            )
        elif event.name == "narration":
            self._narrator.show(data)
        elif event.name == "progress":
            self._progress.show(data)
        elif event.name == "started":
            self.state.started = data
            self._progress.model_is_ready()
        elif not event.name and not self.state.is_over:
            self._take_unnamed(data)

    def _take_unnamed(self, data: Mapping[str, Any]) -> None:
        if "token" in data:
            if data.get("index") != len(self.state.pieces):
                # A text with its pieces mixed up would look like any other.
                self.state.fail("INTERNAL_ERROR", "The stream's tokens are not in order", _SEE_THE_LOG)
                return
            piece = str(data["token"])
            self.state.pieces.append(piece)
            self._narrator.text_begins()
            self._on_token(piece)
        elif data.get("done") is True:
            self.state.done = data
        elif isinstance(data.get("error"), dict):
            self.state.error = data["error"]

    def cancel(self, timeout_s: float, is_hurried: Callable[[], bool]) -> bool:
        """Have the queen stop the request; whether it has acknowledged in time.

        Nothing was under way, and True is told, when no request had been accepted yet.
        """
        self.state.mark_canceled()
        if self.state.request_id is None:
            return True
        acknowledged = threading.Event()
        threading.Thread(
            target=self._send_cancel, args=(timeout_s, acknowledged), name="cancel", daemon=True
        ).start()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not is_hurried():
            if acknowledged.wait(_POLL_S):
                return True
        return acknowledged.is_set()

    def _send_cancel(self, timeout_s: float, acknowledged: threading.Event) -> None:
        from rbee.core.client import TransportFailure
        from rbee.core.errors import RbeeError

        client = self._queen.new_client()
        try:
            client.delete(f"/v2/tasks/{self.state.request_id}", timeout_s=timeout_s)
        except (RbeeError, TransportFailure):
            return
        finally:
            client.close()
        acknowledged.set()
