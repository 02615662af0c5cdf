"""An engine without a model, for tests: tokens follow a simple rule, and a test can hold or break it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event
from gevent.queue import Empty, Queue

from rbee.core.errors import InferenceFailed, RbeeError
from rbee.worker.ports import Decoding, LoadProgress

LAYERS = 4
LAYER_BYTES = 3 << 20


class FakeRun:
    """Implements ``rbee.worker.ports.Run``."""

    def __init__(self, on_stopped: Callable[[], None]) -> None:
        self.reloads_model = False
        self.reused_tokens = 0
        self.is_waiting = False
        self.is_cancelled = False
        self.made = 0
        """Tokens the engine has made, delivered or not."""
        self._on_stopped = on_stopped
        self._tokens: Queue[int | RbeeError | None] = Queue()
        self._stopped = Event()
        self._has_ended = False

    def next_token(self, timeout_s: float) -> int | None:
        if self.is_cancelled or self._has_ended:
            return None
        try:
            item = self._tokens.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError from None
        self._has_ended = item is None or isinstance(item, RbeeError) or self.is_cancelled
        if isinstance(item, RbeeError):
            raise item
        return None if self._has_ended else item

    def wait_begun(self, timeout_s: float) -> bool:  # noqa: ARG002 (it begins at once)
        return True

    def cancel(self) -> None:
        self.is_cancelled = True
        self._tokens.put(None)

    def wait_stopped(self, timeout_s: float) -> bool:
        return bool(self._stopped.wait(timeout_s))

    def deliver(self, token_id: int) -> None:
        self.made += 1
        self._tokens.put(token_id)

    def stop(self, error: RbeeError | None) -> None:
        self._tokens.put(error)
        self._stopped.set()
        self._on_stopped()


class FakeEngine:
    """Implements ``rbee.worker.ports.Engine``.

    ``answer`` is what every run generates; without it tokens are drawn by rule (greedy) or at random. While
    ``hold()`` is in force no further token is made; ``load_error`` and ``run_error`` make it fail.
    """

    device_summary = "fake:0"

    def __init__(self, vocabulary_size: int = 1000, answer: Sequence[int] | None = None) -> None:
        self.vocabulary_size = vocabulary_size
        self.answer = answer
        self.load_error: RbeeError | None = None
        self.run_error: RbeeError | None = None
        self.memory_bytes = 0
        self.is_loaded = False
        self.runs: list[FakeRun] = []
        self.loading = Event()
        self.loading.set()
        self._free = Event()
        self._free.set()

    def hold(self) -> None:
        """Make no token until ``go_on``."""
        self._free.clear()

    def go_on(self) -> None:
        self._free.set()

    def load(self, on_progress: Callable[[LoadProgress], None]) -> None:
        on_progress(LoadProgress(0, LAYERS, 0))
        for layer in range(1, LAYERS + 1):
            self.loading.wait()
            if self.load_error is not None:
                raise self.load_error
            on_progress(LoadProgress(layer, LAYERS, layer * LAYER_BYTES))
        self.is_loaded, self.memory_bytes = True, LAYERS * LAYER_BYTES

    def start(
        self,
        prompt: Sequence[str],
        decoding: Decoding,
        on_stopped: Callable[[], None],
        prefix_tokens: int = 0,  # noqa: ARG002 (nothing is kept)
    ) -> FakeRun:
        run = FakeRun(on_stopped)
        self.runs.append(run)
        gevent.spawn(self._execute, run, list(prompt), decoding)
        return run

    def unload(self) -> None:
        self.is_loaded, self.memory_bytes = False, 0

    def _execute(self, run: FakeRun, prompt: list[str], decoding: Decoding) -> None:
        # No real engine answers at once.
        gevent.sleep(0.002)
        error = self.run_error if prompt else InferenceFailed("fake", "the prompt has no tokens")
        if error is None:
            for token_id in self._tokens(prompt, decoding):
                while not self._free.wait(0.01) and not run.is_cancelled:
                    pass
                if run.is_cancelled or token_id in decoding.stop_token_ids:
                    break
                run.deliver(token_id)
                gevent.sleep(0)
        run.stop(error)

    def _tokens(self, prompt: list[str], decoding: Decoding) -> list[int]:
        if self.answer is not None:
            return list(self.answer[: decoding.max_tokens])
        if decoding.temperature == 0 or decoding.top_k == 1:
            return [
                (len(prompt) * 7 + 3 * step) % self.vocabulary_size for step in range(decoding.max_tokens)
            ]
        source = random.Random(decoding.seed)  # noqa: S311 (a test's tokens)
        return [source.randrange(self.vocabulary_size) for _ in range(decoding.max_tokens)]
