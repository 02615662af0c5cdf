"""Runs work that blocks in native code (files, drivers, imports) beside the event loop, which goes on."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar, cast

import gevent

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> T:
    """Call it in a native thread while other greenlets run; what it raises is raised here.

    For work that waits for no greenlet; child processes must be started from the event loop's own thread.
    """
    outcome = gevent.get_hub().threadpool.apply(_attempt, (contextvars.copy_context(), call))
    # Raised here and not by the pool, which would print the traceback of an ordinary refusal.
    if isinstance(outcome, _Raised):
        raise outcome.error
    return cast(T, outcome)


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _attempt(context: contextvars.Context, call: Callable[[], T]) -> T | _Raised:
    try:
        return context.run(call)
    except Exception as error:
        return _Raised(error)
