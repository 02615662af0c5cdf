"""The keepers that an ephemeral queen serves: it lives as long as one of them does."""

from __future__ import annotations

from gevent.event import Event

from rbee.core.errors import ServiceUnavailable

OWNER = "owner"
"""The keeper that started the queen."""


class Keepers:
    """Who is present: the owner from the beginning, others that found the queen running and joined it.

    Args:
        daemon_pid: the queen's, whose end the last keeper waits for.
    """

    def __init__(self, daemon_pid: int) -> None:
        self.daemon_pid = daemon_pid
        self._present = {OWNER}
        self._none_left = Event()

    def join(self, keeper: str) -> None:
        """Have the queen stay until this keeper leaves.

        Raises:
            ServiceUnavailable: the last keeper has left; the queen is on its way out.
        """
        if self._none_left.is_set():
            raise ServiceUnavailable("The queen is shutting down")
        self._present.add(keeper)

    def leave(self, keeper: str) -> bool:
        """Note that a keeper is gone; whether it was the last one, so that the queen ends."""
        self._present.discard(keeper)
        if not self._present:
            self._none_left.set()
        return self._none_left.is_set()

    def wait_until_none(self) -> None:
        """Block until the last keeper has left."""
        self._none_left.wait()
