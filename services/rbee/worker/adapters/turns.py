"""Lets runs share the engine, or one have it to itself while it changes what all of them use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent.event import Event
from gevent.lock import Semaphore

_LOOK_UP_S = 0.05


class GaveUp(Exception):
    """The caller no longer wanted its turn while it waited."""


class Turns:
    """First come, first served: one that waits to be alone holds those behind it back, too."""

    def __init__(self) -> None:
        self._door = Semaphore(1)
        self._inside = 0
        self._quiet = Event()
        self._quiet.set()

    @contextmanager
    def shared(self, is_unwanted: Callable[[], bool]) -> Iterator[None]:
        """A turn beside others.

        Raises:
            GaveUp: ``is_unwanted`` became true while waiting.
        """
        self._pass_door(is_unwanted)
        self._enter()
        self._door.release()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self, is_unwanted: Callable[[], bool]) -> Iterator[Callable[[], None]]:
        """A turn with nobody else inside; calling the given function lets others in from then on.

        Raises:
            GaveUp: ``is_unwanted`` became true while waiting.
        """
        self._pass_door(is_unwanted)
        is_open = False

        def open_door() -> None:
            nonlocal is_open
            if not is_open:
                is_open = True
                self._door.release()

        try:
            while not self._quiet.wait(_LOOK_UP_S):
                if is_unwanted():
                    raise GaveUp
            self._enter()
            try:
                yield open_door
            finally:
                self._leave()
        finally:
            open_door()

    def _pass_door(self, is_unwanted: Callable[[], bool]) -> None:
        while not self._door.acquire(timeout=_LOOK_UP_S):
            if is_unwanted():
                raise GaveUp
        if is_unwanted():
            self._door.release()
            raise GaveUp

    def _enter(self) -> None:
        self._inside += 1
        self._quiet.clear()

    def _leave(self) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._quiet.set()
