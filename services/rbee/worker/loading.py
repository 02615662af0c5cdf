"""Loading the model in the background, told event by event to readers that come early or late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from gevent.event import Event

from rbee.core.errors import RbeeError
from rbee.worker.narration import Narrator
from rbee.worker.native import NativeThreads
from rbee.worker.ports import Decoding, Engine, LoadProgress, TextModel

MB = 1 << 20
_WARM_UP_LIMIT_S = 120.0


class LoadingJournal:
    """The progress events of one loading and how it ended."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._ending: dict[str, Any] | None = None
        self._changed = Event()
        self.error: RbeeError | None = None

    @property
    def latest(self) -> dict[str, Any] | None:
        return self._events[-1] if self._events else None

    def progress(self, progress: LoadProgress) -> None:
        self._events.append(
            {
                "stage": "loading_to_vram",
                "layers_loaded": progress.layers_loaded,
                "layers_total": progress.layers_total,
                "vram_mb": progress.bytes_read // MB,
            }
        )
        self._wake()

    def succeed(self) -> None:
        self._ending = {"stage": "ready"}
        self._wake()

    def fail(self, error: RbeeError) -> None:
        self.error = error
        self._ending = {"stage": "error", "message": error.message}
        self._wake()

    def follow(self) -> Iterator[dict[str, Any]]:
        """The events so far and those to come, the ending last; only the ending once the model is loaded."""
        is_loaded = self._ending is not None and self.error is None
        position = len(self._events) if is_loaded else 0
        while True:
            changed = self._changed
            while position < len(self._events):
                position += 1
                yield self._events[position - 1]
            if self._ending is not None and changed is self._changed:
                yield self._ending
                return
            changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, Event()
        changed.set()


class ModelLoader:
    """Loads engine and tokenizer side by side and warms the engine up."""

    def __init__(
        self,
        engine: Engine,
        open_text: Callable[[], TextModel],
        journal: LoadingJournal,
        narrate: Narrator,
        *,
        model_name: str,
    ) -> None:
        self._engine = engine
        self._open_text = open_text
        self._journal = journal
        self._narrate = narrate
        self._model_name = model_name

    def load(self) -> TextModel:
        """Returns the tokenizer once the engine has made its first token.

        Raises:
            RbeeError: the model cannot be loaded.
        """
        started = time.perf_counter()
        self._narrate("model-loader", "model_load", f"Loading model {self._model_name}")
        text_threads = NativeThreads(1)
        pending = text_threads.begin(self._open_text)
        self._engine.load(self._journal.progress)
        text = pending.result()
        seconds = time.perf_counter() - started
        memory = f"{self._engine.memory_bytes / MB:.0f} MB"
        self._narrate("model-loader", "model_load", f"Model loaded in {seconds:.1f} s ({memory})")
        self._warm_up(text)
        return text

    def _warm_up(self, text: TextModel) -> None:
        started = time.perf_counter()
        prompt = [text.tokens[0]]
        run = self._engine.start(prompt, Decoding(max_tokens=1, temperature=0.0), lambda: None)
        run.next_token(_WARM_UP_LIMIT_S)
        run.wait_stopped(_WARM_UP_LIMIT_S)
        took = (time.perf_counter() - started) * 1000
        self._narrate("ct2-backend", "warmup", f"Warmed up with one token in {took:.0f} ms")
