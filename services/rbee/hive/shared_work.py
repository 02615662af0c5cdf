"""Work that several callers wait for: done once, told at a bounded rate to every reader, also late ones."""

from __future__ import annotations

import contextvars
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import AsyncResult, Event

from rbee.core.errors import RbeeError
from rbee.core.logs import get_logger
from rbee.web.app import correlation_id
from rbee.web.errors import internal_error

log = get_logger("rbee-hive")

MAX_PER_SECOND = 10
SPACING_S = 0.1
KEPT_EVENTS = 500
# What the stages of progress count, with the names of their totals.
_COUNTS = (
    ("bytes_downloaded", "bytes_total"),
    ("tensors_done", "tensors_total"),
    ("layers_done", "layers_total"),
)

WireEvent = dict[str, Any]
"""``{"event": "progress" | "narration", "data": {…}}``."""

OnEvent = Callable[[WireEvent], None]
T = TypeVar("T")


class ProgressLog:
    """What happened so far, and what is to come.

    Of progress only the latest matters, so a newer one replaces it: a late or slow reader gets every
    narration and the present figures, and memory stays bounded however long the work takes. Figures that come
    faster than ten a second are held back, yet never lost before a narration, a pause or the end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: deque[tuple[int, WireEvent]] = deque(maxlen=KEPT_EVENTS)
        self._count = 0
        self._changed = Event()
        self._is_over = False
        self._held: WireEvent | None = None
        self._times: deque[float] = deque(maxlen=MAX_PER_SECOND)

    @property
    def latest_progress(self) -> dict[str, Any] | None:
        """The data of the last progress event."""
        shown = (event["data"] for _, event in reversed(self._events) if event["event"] == "progress")
        return next(shown, None)

    def add(self, event: WireEvent) -> None:
        """Add an event; waits a moment where a reader would otherwise see more than ten a second."""
        if event["event"] != "progress":
            self._release()
            self._append(event)
        elif self._times and self._clock() - self._times[-1] < SPACING_S and not _is_last(event["data"]):
            if self._held is None:
                gevent.spawn_later(SPACING_S, self._release_in_pause)
            self._held = event
        else:
            self._held = event
            self._release()

    def end(self) -> None:
        """Nothing follows."""
        self._release()
        self._is_over = True
        self._wake()

    def follow(self) -> Iterator[WireEvent]:
        """The events so far and those to come, until the end."""
        seen = 0
        while True:
            changed = self._changed
            for number, event in list(self._events):
                if number > seen:
                    seen = number
                    yield event
            if changed is not self._changed:
                continue
            if self._is_over:
                return
            changed.wait()

    def _release_in_pause(self) -> None:
        """Show the figures that were held back when none have followed them; never more than ten a second."""
        if self._held is None:
            return
        is_full = len(self._times) == MAX_PER_SECOND
        wait = max(self._times[-1] + SPACING_S, self._times[0] + 1.0 if is_full else 0.0) - self._clock()
        if wait > 0:
            gevent.spawn_later(wait, self._release_in_pause)
        else:
            self._release()

    def _release(self) -> None:
        if self._held is None:
            return
        event, self._held = self._held, None
        if len(self._times) == MAX_PER_SECOND:
            gevent.sleep(max(0.0, self._times[0] + 1.0 - self._clock()))
        self._times.append(self._clock())
        if self._events and self._events[-1][1]["event"] == "progress":
            self._events.pop()
        self._append(event)

    def _append(self, event: WireEvent) -> None:
        self._count += 1
        self._events.append((self._count, event))
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, Event()
        changed.set()


class SharedWork(Generic[T]):
    """One piece of work in a greenlet of its own; it goes on when its readers leave."""

    def __init__(self) -> None:
        self.progress = ProgressLog()
        self._outcome: AsyncResult[T] = AsyncResult()

    @property
    def result(self) -> T | None:
        """What it gave; None while it runs and after it failed."""
        return self._outcome.value if self._outcome.successful() else None

    def wait(self) -> T:
        """What it gave, once it is over.

        Raises:
            RbeeError: it failed.
        """
        return self._outcome.get()

    def settle(self) -> bool:
        """Block until it is over; whether it succeeded."""
        self._outcome.wait()
        return bool(self._outcome.successful())

    def follow(self, on_event: OnEvent) -> T:
        """Pass on its events, those so far first, and return as ``wait`` does."""
        for event in self.progress.follow():
            on_event(event)
        return self.wait()

    def start(self, work: Callable[[OnEvent], T], over: Callable[[], None]) -> None:
        """Begin; ``over`` is called when there is an outcome, before anybody who waits for it goes on."""
        gevent.spawn(contextvars.copy_context().run, self._run, work, over)

    def complete(self, result: T) -> None:
        """Set the result of work that needed no doing."""
        self._outcome.set(result)
        self.progress.end()

    def _run(self, work: Callable[[OnEvent], T], over: Callable[[], None]) -> None:
        try:
            result = work(self.progress.add)
        except Exception as error:
            # A supervision edge: whatever went wrong, readers wait for an outcome.
            over()
            self._outcome.set_exception(_as_ours(error))
            self.progress.end()
        else:
            over()
            self.complete(result)


def _as_ours(error: Exception) -> RbeeError:
    if isinstance(error, RbeeError):
        return error
    log.error("internal_error", message=type(error).__name__, exc_info=error)
    return internal_error(correlation_id() or "")


def _is_last(data: dict[str, Any]) -> bool:
    """Whether the figures say that the work is complete."""
    for done, total in _COUNTS:
        if done in data:
            return bool(data.get(total)) and data[done] >= data[total]
    return False
