"""Shares the cores out among the engine's runs: one that is alone has them all.

The engine gives each of its threads a number of helpers when it starts. They are OpenMP's, whose standard
lets a thread change the number for what it does next (omp_set_num_threads); the engine calls back from that
very thread after every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class EngineThreads:
    """How many threads a run should use, kept up to date while runs come and go.

    Args:
        cores: all there are.
        set_threads: sets the number for the calling thread; None: that cannot be done here, so the share
            never changes.
        usual: runs that are expected to be under way at once.
    """

    def __init__(self, cores: int, usual: int, set_threads: Callable[[int], None] | None) -> None:
        self._cores = cores
        self._set_threads = set_threads
        self._running = 0
        self.at_first = max(1, cores // usual) if set_threads is None else cores
        """What a thread of the engine starts with; later it keeps what it had at the end of its last run."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """While one more run is under way."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def follower(self) -> Callable[[], None]:
        """To be called again and again in the thread of one run, which then uses its share."""
        set_threads, now = self._set_threads, 0
        if set_threads is None:
            return lambda: None

        def follow() -> None:
            nonlocal now
            share = max(1, self._cores // max(1, self._running))
            if share != now:
                now = share
                set_threads(share)

        return follow


def openmp_setter() -> Callable[[int], None] | None:
    """Sets the calling thread's number of OpenMP threads; None where no such library is loaded."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="openmp").lib_controllers
    if not libraries:
        return None

    def set_threads(count: int) -> None:
        for library in libraries:
            library.set_num_threads(count)

    return set_threads
