"""One request that holds a slot: its tokens and its end as events, the engine stopped whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rbee.core.errors import GenerationTimeout, RbeeError, RequestCanceled, RequestTimeout
from rbee.core.events import encode_event
from rbee.core.lifecycle import StopReason
from rbee.core.schemas import InferenceRequest
from rbee.web.sse import ClientGone, Emitter
from rbee.worker.answer_text import AnswerText
from rbee.worker.metrics import Metrics, Outcome
from rbee.worker.narration import log_narration
from rbee.worker.ports import Decoding, Engine, Run, TextModel
from rbee.worker.prefixes import shared_beginning
from rbee.worker.slots import Slot

NARRATE_EVERY_TOKENS = 10
_LOOK_S = 0.5
"""How often a request that the engine has not begun is looked at."""
# How long a stream waits for the engine to let go before its last event; a token takes less.
_STOP_GRACE_S = 2.0


@dataclass(frozen=True)
class Workplace:
    """What every inference of a worker uses."""

    worker_id: str
    model_ref: str
    engine: Engine
    metrics: Metrics
    log: Any
    stall_s: float
    """How long the next token may take."""


class Inference:
    """Runs once, in the greenlet that calls ``produce``; the other methods are for other greenlets."""

    def __init__(
        self,
        place: Workplace,
        request: InferenceRequest,
        text: TextModel,
        prompt: list[int],
        slot: Slot,
        on_released: Callable[[Inference], None],
    ) -> None:
        self.request_id = slot.request_id
        self._place = place
        self._request = request
        self._text = text
        self._prompt = prompt
        self._slot = slot
        self._on_released = on_released
        self._run: Run | None = None
        self._is_canceled = False
        self._tokens = 0

    def cancel(self) -> None:
        """Have the stream end with REQUEST_CANCELED."""
        self._is_canceled = True
        if self._run is not None:
            self._run.cancel()

    def wait_released(self, timeout_s: float) -> bool:
        """Wait until the engine has let go and the slot is free."""
        return self._run is None or self._run.wait_stopped(timeout_s)

    def abandon(self) -> None:
        """The answer is closed, whether or not ``produce`` ever began: leave nothing behind."""
        if self._run is None:
            self._release()
        else:
            self._run.cancel()

    def produce(self, emitter: Emitter) -> None:
        """Stream the whole answer."""
        started = time.monotonic()
        outcome = Outcome.FAILED
        try:
            self._stream(emitter, started)
            outcome = Outcome.DONE
        except ClientGone:
            outcome = Outcome.CLIENT_GONE
            self._log_end("client_gone", "the client left; its generation is cancelled")
            raise
        except RbeeError as error:
            outcome = _outcome_of(error)
            self._log_end("inference_ended_early", error.message, error_code=error.code)
            self._stop_engine()
            raise
        finally:
            self.abandon()
            self._place.metrics.count(outcome)
            self._place.metrics.duration_ms.observe((time.monotonic() - started) * 1000)

    def _stream(self, emitter: Emitter, started: float) -> None:
        place = self._place
        self._narrate(emitter, "llm-worker-rbee", "execute_request", f"Executing request {self.request_id}")
        self._narrate(emitter, "tokenizer", "tokenize", f"Tokenized the prompt: {len(self._prompt)} tokens")
        ids = {"request_id": self.request_id, "worker_id": place.worker_id, "model": place.model_ref}
        emitter.event(ids, "started")
        run = self._begin()
        if run.reloads_model:
            self._narrate(emitter, "ct2-backend", "cache_reset", "Loading the model anew to take up the seed")
        self._narrate(
            emitter, "ct2-backend", "inference_start", f"Generating up to {self._request.max_tokens} tokens"
        )
        answer = AnswerText(self._text.decoder(), self._request.stop)
        self._await_turn(run, emitter, started)
        self._place.metrics.tokens_reused.inc(run.reused_tokens)
        for index, text in enumerate(self._texts(run, answer, started)):
            emitter.event({"token": text, "index": index})
            if (index + 1) % NARRATE_EVERY_TOKENS == 0:
                self._narrate(emitter, "ct2-backend", "token_generate", f"Generated {index + 1} tokens")
        # The slot is free before the client learns that its answer is complete: it may come back at once.
        self._stop_engine()
        self._conclude(emitter, started, self._stop_reason(answer))

    def _begin(self) -> Run:
        if self._is_canceled:
            raise RequestCanceled(self.request_id, 0)
        request, tokens = self._request, self._text.tokens
        decoding = Decoding(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            stop_token_ids=self._text.stop_token_ids,
        )
        self._run = self._place.engine.start(
            [tokens[i] for i in self._prompt],
            decoding,
            self._release,
            shared_beginning(self._prompt, self._text.stop_token_ids),
        )
        return self._run

    def _await_turn(self, run: Run, emitter: Emitter, started: float) -> None:
        """Wait until the engine has begun, so that the time is no stall; the client is told if it takes long.

        Raises:
            RequestTimeout
        """
        is_told, limit = False, self._request.timeout_seconds
        while run.is_waiting and not run.wait_begun(_LOOK_S):
            if time.monotonic() >= started + limit:
                raise RequestTimeout(limit, 0)
            if not is_told:
                is_told = True
                self._narrate(emitter, "ct2-backend", "queued", "Waiting for the engine, which serves others")

    def _texts(self, run: Run, answer: AnswerText, started: float) -> Iterator[str]:
        """The texts of the token events, until the answer ends."""
        while not answer.is_stopped and (token_id := self._next_token(run, started)) is not None:
            self._tokens += 1
            self._place.metrics.tokens_generated.inc()
            yield from answer.feed(token_id)
        if self._is_canceled:
            raise RequestCanceled(self.request_id, self._tokens)
        yield from answer.finish()

    def _next_token(self, run: Run, started: float) -> int | None:
        limit = self._request.timeout_seconds
        left = started + limit - time.monotonic()
        try:
            return run.next_token(max(0.0, min(self._place.stall_s, left)))
        except TimeoutError:
            if left <= self._place.stall_s:
                raise RequestTimeout(limit, self._tokens) from None
            raise GenerationTimeout(self._tokens, self._place.stall_s) from None

    def _stop_reason(self, answer: AnswerText) -> StopReason:
        if answer.is_stopped:
            return StopReason.STOP_SEQUENCE
        return StopReason.MAX_TOKENS if self._tokens == self._request.max_tokens else StopReason.EOS

    def _conclude(self, emitter: Emitter, started: float, reason: StopReason) -> None:
        seconds = time.monotonic() - started
        speed = f"{self._tokens / max(seconds, 0.001):.1f} tokens/s"
        human = f"Generated {self._tokens} tokens in {seconds * 1000:.0f} ms ({speed})"
        self._narrate(emitter, "ct2-backend", "inference_complete", human)
        emitter.conclude(
            encode_event(
                {
                    "done": True,
                    "total_tokens": self._tokens,
                    "duration_ms": round(seconds * 1000),
                    "stop_reason": reason,
                }
            )
        )

    def _stop_engine(self) -> None:
        if self._run is not None:
            self._run.cancel()
            self._run.wait_stopped(_STOP_GRACE_S)

    def _release(self) -> None:
        self._slot.release()
        self._on_released(self)

    def _narrate(self, emitter: Emitter, actor: str, action: str, human: str) -> None:
        emitter.narrate(actor, action, human)
        log_narration(self._place.log, actor, action, human)

    def _log_end(self, event: str, message: str, **facts: Any) -> None:
        self._place.log.warning(event, message=message, tokens_generated=self._tokens, **facts)


def _outcome_of(error: RbeeError) -> Outcome:
    if isinstance(error, RequestCanceled):
        return Outcome.CANCELED
    if isinstance(error, (RequestTimeout, GenerationTimeout)):
        return Outcome.TIMEOUT
    return Outcome.FAILED
