"""One generation of CTranslate2: tokens from the engine's native thread, into the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event
from gevent.queue import Empty, Queue

from rbee.core.errors import RbeeError
from rbee.worker.ports import Decoding


class CTranslate2Run:
    """Implements ``rbee.worker.ports.Run``."""

    def __init__(self, prompt: Sequence[str], decoding: Decoding, prefix_tokens: int = 0) -> None:
        self.prompt = list(prompt)
        self.prefix = tuple(self.prompt[:prefix_tokens]) or None
        self.decoding = decoding
        self.reloads_model = False
        self.reused_tokens = 0
        self._begun = Event()
        self.is_cancelled = False
        self._stop_token_ids = decoding.stop_token_ids
        self._made = 0
        self._is_complete = False
        self._tokens: Queue[int | RbeeError | None] = Queue()
        self._has_ended = False
        self._stopped = Event()
        self._loop = gevent.get_hub().loop
        self._when_stopped: list[Callable[[], None]] = []
        self._when_cancelled: Callable[[], None] | None = None

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
            self._begun.set()
            if self._when_cancelled is not None:
                self._when_cancelled()

    def wait_stopped(self, timeout_s: float) -> bool:
        return bool(self._stopped.wait(timeout_s))

    @property
    def is_waiting(self) -> bool:
        return not self._begun.is_set()

    def wait_begun(self, timeout_s: float) -> bool:
        return bool(self._begun.wait(timeout_s))

    def begins(self) -> None:
        """The engine turns to this run now."""
        self._begun.set()

    def when_stopped(self, observer: Callable[[], None]) -> None:
        """Have ``observer``, which must not block or raise, called once: when the engine has let go."""
        self._when_stopped.append(observer)

    def when_cancelled(self, observer: Callable[[], None]) -> None:
        """Have ``observer`` called when this run is cancelled."""
        self._when_cancelled = observer

    def on_step(self, token_id: int) -> bool:
        """Called by the engine in a thread of its own, for each token; True ends this run, not its batch."""
        if not self.is_cancelled and token_id not in self._stop_token_ids:
            self._made += 1
            self._loop.run_callback_threadsafe(self._tokens.put_nowait, token_id)
            if self._made < self.decoding.max_tokens:
                return False
        self._is_complete = True
        self._loop.run_callback_threadsafe(self.stopped, None)
        return True

    @property
    def is_complete(self) -> bool:
        """Whether the engine had a reason to end."""
        return self._is_complete or self.is_cancelled

    def stopped(self, error: RbeeError | None) -> None:
        """The engine has let go of this run; only the first call counts."""
        if self._stopped.is_set():
            return
        self._tokens.put(error)
        self._begun.set()
        self._stopped.set()
        for observer in self._when_stopped:
            observer()
