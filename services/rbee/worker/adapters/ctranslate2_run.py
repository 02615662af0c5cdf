"""One generation of CTranslate2: tokens from the engine's native thread, into the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from gevent.queue import Empty, Queue

from rbee.core.errors import RbeeError


class CTranslate2Run:
    """Implements ``rbee.worker.ports.Run``."""

    def __init__(self, stop_token_ids: frozenset[int], on_stopped: Callable[[], None]) -> None:
        self.reloads_model = False
        self.is_cancelled = False
        self._stop_token_ids = stop_token_ids
        self._made = 0
        self._has_end_token = False
        self._on_stopped = on_stopped
        self._tokens: Queue[int | RbeeError | None] = Queue()
        self._has_ended = False
        self._sampled = Event()
        self._stopped = Event()
        self._loop = gevent.get_hub().loop

    def next_token(self, timeout_s: float) -> int | None:
        if self.is_cancelled or self._has_ended:
            return None
        try:
            item = self._tokens.get(timeout=max(0.0, timeout_s))
        except Empty:
            raise TimeoutError from None
        if isinstance(item, RbeeError):
            self._has_ended = True
            raise item
        if item is None or self.is_cancelled:
            self._has_ended = True
            return None
        return item

    def cancel(self) -> None:
        if not self.is_cancelled:
            self.is_cancelled = True
            self._tokens.put(None)

    def wait_stopped(self, timeout_s: float) -> bool:
        return bool(self._stopped.wait(timeout_s))

    def on_step(self, step: Any) -> bool:
        """Called by the engine in a thread of its own, for each token; True ends the generation."""
        if self.is_cancelled:
            return True
        token_id: int = step.token_id
        if token_id in self._stop_token_ids:
            self._has_end_token = True
        else:
            self._made += 1
            self._loop.run_callback_threadsafe(self._deliver, token_id)
        return False

    def is_complete(self, max_tokens: int) -> bool:
        """Whether the engine had a reason to end."""
        return self.is_cancelled or self._has_end_token or self._made == max_tokens

    def wait_sampled(self) -> None:
        """Wait until ``note_sampled``, which the first token calls."""
        self._sampled.wait()

    def note_sampled(self) -> None:
        self._sampled.set()

    def stopped(self, error: RbeeError | None) -> None:
        """The engine has let go of this run."""
        self._tokens.put(error)
        self._stopped.set()
        self._on_stopped()

    def _deliver(self, token_id: int) -> None:
        self._tokens.put_nowait(token_id)
        self.note_sampled()
