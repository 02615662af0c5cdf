"""A keeper's place at a queen that lives for commands: such a queen stays while one of them holds a place."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.core.client import EventStream, ServiceClient

OWNER = "owner"
"""The keeper that started the queen has its place from the beginning."""
_ANSWER_S = 2.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Farewell:
    """How a queen was left: whether it ends now, and its pid where it told that."""

    is_last: bool
    queen_pid: int = 0

    def await_end(self, patience_s: float, is_hurried: Callable[[], bool]) -> None:
        """Wait until a queen that is ending is gone, with all it started; give up when hurried."""
        if not self.is_last or not self.queen_pid:
            return
        from rbee.core.processes import is_same_process, started_at

        started = started_at(self.queen_pid)
        deadline = time.monotonic() + patience_s
        while started is not None and is_same_process(self.queen_pid, started):
            if time.monotonic() > deadline or is_hurried():
                return
            time.sleep(_POLL_S)


class PlaceAtQueen:
    """The owner's place, until ``join`` makes it that of another keeper."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._api_key = api_key
        self._keeper = OWNER
        self._stream: EventStream | None = None

    def join(self) -> bool:
        """Take a place by a stream that stays open, so that our death frees it; False: it is ending."""
        from rbee.core.client import TransportFailure
        from rbee.core.errors import RbeeError

        self._keeper = str(uuid.uuid4())
        try:
            self._stream = self._client().stream(
                "GET", f"/v2/keepers/{self._keeper}", read_timeout_s=_ANSWER_S
            )
        except (RbeeError, TransportFailure):
            return False
        return True

    def leave(self) -> Farewell:
        """Free the place; a queen that does not answer any more counts as ending."""
        from rbee.core.client import TransportFailure
        from rbee.core.errors import RbeeError

        client = self._client()
        try:
            answer = client.delete(f"/v2/keepers/{self._keeper}", timeout_s=_ANSWER_S)
            return Farewell(bool(answer.get("ending")), int(answer.get("pid") or 0))
        except (RbeeError, TransportFailure, AttributeError, TypeError, ValueError):
            return Farewell(True)
        finally:
            client.close()
            if self._stream is not None:
                self._stream.close()

    def _client(self) -> ServiceClient:
        from rbee.core.client import ServiceClient

        return ServiceClient(self._url, api_key=self._api_key)
