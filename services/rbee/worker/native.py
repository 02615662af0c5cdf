"""Runs calls that block in native code beside the event loop, so that health answers at all times."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from gevent.threadpool import ThreadPool

T = TypeVar("T")


class NativeThreads:
    """A pool of native threads, made when first used."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPool(size)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function`` in a native thread while other greenlets go on; what it raises is raised here."""
        return self.begin(function, *args).result()

    def begin(self, function: Callable[..., T], *args: Any) -> Pending[T]:
        """Start ``function`` without waiting for it."""
        return Pending(self._pool.spawn(_attempt, contextvars.copy_context(), function, args))


class Pending(Generic[T]):
    """A call under way in a native thread."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the call has ended within ``timeout_s``."""
        self._outcome.wait(timeout_s)
        return bool(self._outcome.ready())

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the event loop when the call has ended; it must not block."""
        self._outcome.rawlink(lambda _outcome: callback())

    def result(self) -> T:
        """Wait for the end; gives what the call gave, or raises what it raised."""
        outcome = self._outcome.get()
        if isinstance(outcome, _Raised):
            raise outcome.error
        return cast(T, outcome)


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _attempt(
    context: contextvars.Context, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any | _Raised:
    try:
        return context.run(function, *args)
    except Exception as error:
        # Carried over and raised where the result is wanted; the pool itself would print a traceback.
        return _Raised(error)
