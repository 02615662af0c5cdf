"""Background work of the hive: greenlets whose failure is logged and harms nothing else."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import gevent


def start(log: Any, work: Callable[..., Any], *arguments: Any) -> gevent.Greenlet:
    """Run ``work`` in a greenlet of its own; an exception is logged, not lost on standard error.

    It keeps the caller's context, so that its log lines carry the correlation id of the request behind it.
    """

    def guarded() -> None:
        try:
            work(*arguments)
        except Exception as error:
            log.error("supervision_failed", message=type(error).__name__, exc_info=error)

    return gevent.spawn(contextvars.copy_context().run, guarded)


def start_repeating(log: Any, pause_s: Callable[[], float], look: Callable[[], None]) -> gevent.Greenlet:
    """Call ``look`` again and again; ``pause_s`` tells before each call how long to wait for it.

    ``look`` must not block for long: it starts greenlets for what may take time.
    """

    def rounds() -> None:
        while True:
            gevent.sleep(pause_s())
            try:
                look()
            except Exception as error:
                log.error("supervision_failed", message=type(error).__name__, exc_info=error)

    return gevent.spawn(rounds)
