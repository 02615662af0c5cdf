"""The story of one worker's start, kept so that every reader gets it from the beginning."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any

from gevent.event import Event

from rbee.core.errors import RbeeError, WorkerNotFound
from rbee.core.events import encode_event, encode_narration

KEPT_EVENTS = 4096
KEPT_FAILURES = 100
FAILURES_KEPT_S = 600.0


class StartupLog:
    """Narration and progress of a start, as encoded events, and how it ended."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque(maxlen=KEPT_EVENTS)
        self._count = 0
        self._changed = Event()
        self.error: RbeeError | None = None
        self.is_over = False

    def narrate(self, actor: str, action: str, human: str) -> None:
        """Add a narration line; lines that come after the end are kept for readers that come later."""
        self._append(encode_narration(actor, action, human))

    def event(self, wire: Mapping[str, Any]) -> None:
        """Add ``{"event": "progress" | "narration", "data": {…}}``."""
        self._append(encode_event(wire["data"], wire["event"]))

    def succeed(self) -> None:
        """The worker has called back."""
        self._end(None)

    def fail(self, error: RbeeError) -> None:
        """The start failed; only the first end counts."""
        self._end(error)

    def follow(self) -> Iterator[bytes]:
        """The events so far and those to come, until the start is over.

        Raises:
            RbeeError: the start failed; raised after its last event.
        """
        position = 0
        while True:
            changed = self._changed
            skipped = self._count - len(self._events)
            fresh = list(self._events)[max(0, position - skipped) :]
            position = self._count
            yield from fresh
            if position == self._count and changed is self._changed:
                if self.is_over:
                    break
                changed.wait()
        if self.error is not None:
            raise self.error

    def _append(self, raw: bytes) -> None:
        self._events.append(raw)
        self._count += 1
        self._wake()

    def _end(self, error: RbeeError | None) -> None:
        if not self.is_over:
            self.is_over, self.error = True, error
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, Event()
        changed.set()


class FailedStarts:
    """Logs of workers whose start failed, for readers that ask only afterwards."""

    def __init__(self) -> None:
        self._logs: OrderedDict[str, tuple[float, StartupLog]] = OrderedDict()

    def keep(self, worker_id: str, log: StartupLog) -> None:
        self._logs[worker_id] = (time.monotonic(), log)
        while len(self._logs) > KEPT_FAILURES:
            self._logs.popitem(last=False)

    def get(self, worker_id: str) -> StartupLog:
        """The log of a start that failed within the last ten minutes.

        Raises:
            WorkerNotFound: there is none.
        """
        since = time.monotonic() - FAILURES_KEPT_S
        while self._logs and next(iter(self._logs.values()))[0] < since:
            self._logs.popitem(last=False)
        if worker_id not in self._logs:
            raise WorkerNotFound(worker_id)
        return self._logs[worker_id][1]
