"""Greenlets that carry on the context (correlation id, log fields) of the request that spawned them."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import gevent


def spawn(work: Callable[..., Any], *args: Any) -> gevent.Greenlet:
    """Run ``work(*args)`` in a greenlet with a copy of the current context."""
    return gevent.spawn(contextvars.copy_context().run, work, *args)
