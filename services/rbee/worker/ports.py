"""What the worker needs from outside: an engine, a tokenizer and somebody to call back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far the weights have been read; ``layers_loaded`` counts layers read to their last byte."""

    layers_loaded: int
    layers_total: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to choose tokens and when to end.

    ``temperature`` 0 is greedy, ``top_k`` 0 means all tokens, ``seed`` None means a random one. A token of
    ``stop_token_ids`` ends the generation and is not part of it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()


class Run(Protocol):
    """One generation under way; all methods are for greenlets of the event loop's thread."""

    reloads_model: bool
    """Whether the model is loaded again first, so that a seed takes effect."""
    reused_tokens: int
    """Tokens of the prompt whose state the engine had kept; known once it has begun."""

    @property
    def is_waiting(self) -> bool:
        """Whether the engine has not begun it: others are served first."""

    def next_token(self, timeout_s: float) -> int | None:
        """The next token's id; None when the generation has ended or was cancelled.

        Raises:
            TimeoutError: none came within ``timeout_s``; the generation goes on.
            RbeeError: the engine failed.
        """

    def wait_begun(self, timeout_s: float) -> bool:
        """Wait until the engine has begun it, or it is over; False when it waits longer."""

    def cancel(self) -> None:
        """Have the engine stop before its next token; ``next_token`` gives None from now on."""

    def wait_stopped(self, timeout_s: float) -> bool:
        """Wait until the engine works no more for this run; False when it still does after ``timeout_s``."""


class Engine(Protocol):
    """A language model on one device; blocking calls block the greenlet, never the event loop."""

    @property
    def device_summary(self) -> str:
        """Device and threads, for people."""

    @property
    def memory_bytes(self) -> int:
        """Memory the model takes: device memory on a GPU, else main memory; 0 while none is loaded."""

    @property
    def is_loaded(self) -> bool: ...

    def load(self, on_progress: Callable[[LoadProgress], None]) -> None:
        """Load the model; reports 0 layers first and every layer once.

        Raises:
            RbeeError: the model cannot be loaded.
        """

    def start(
        self,
        prompt: Sequence[str],
        decoding: Decoding,
        on_stopped: Callable[[], None],
        prefix_tokens: int = 0,
    ) -> Run:
        """Begin a generation that continues ``prompt`` (the engine's token strings, at least one).

        Other prompts may begin with the same ``prefix_tokens`` tokens, so that their state is worth keeping.
        ``on_stopped`` is called once, when the engine has let go of the run, however it ended; it must not
        block or raise.
        """

    def unload(self) -> None:
        """Free the model's memory; runs have to be over."""


class Decoder(Protocol):
    """Token ids of one answer to text."""

    @property
    def is_pending(self) -> bool: ...

    def feed(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TextModel(Protocol):
    """Text to token ids and back; see ``rbee.models.text``."""

    @property
    def tokens(self) -> list[str]: ...

    @property
    def stop_token_ids(self) -> frozenset[int]: ...

    @property
    def context_length(self) -> int: ...

    def encode_prompt(self, prompt: str, system: str | None = None, raw: bool = False) -> list[int]: ...

    def decoder(self) -> Decoder: ...


class Hive(Protocol):
    """Who started this worker and waits for its call."""

    def report_ready(self, report: dict[str, object]) -> None:
        """Say that HTTP is up.

        Raises:
            CallbackFailed: the hive could not be told.
        """


class CallbackFailed(Exception):
    """The ready callback did not get through; the text says why."""
