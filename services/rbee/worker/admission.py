"""Which requests are let in: those a free slot can serve and whose prompt and answer fit the context."""

from __future__ import annotations

import uuid

from rbee.core.errors import InvalidRequest, RbeeError, WorkerNotReady
from rbee.core.schemas import InferenceRequest
from rbee.worker.inference import Inference, Workplace
from rbee.worker.metrics import Outcome
from rbee.worker.native import NativeThreads
from rbee.worker.ports import TextModel
from rbee.worker.slots import Slots


class Admission:
    """Lets requests in, and knows those that are inside."""

    def __init__(self, place: Workplace, slots: Slots, *, context_tokens: int) -> None:
        self._place = place
        self._slots = slots
        self._context_tokens = context_tokens
        self._text: TextModel | None = None
        self._active: dict[str, Inference] = {}
        # One thread of its own: the tokenizer serves one text at a time.
        self._tokenizing = NativeThreads(1)

    def use(self, text: TextModel) -> None:
        """The tokenizer, once it is loaded."""
        self._text = text

    def admit(self, request: InferenceRequest) -> Inference:
        """Take a slot for ``request``.

        Raises:
            WorkerNotReady, RequestConflict, AllSlotsBusy: it cannot be served now.
            InvalidRequest: prompt and answer do not fit the context.
        """
        request_id = request.request_id or str(uuid.uuid4())
        try:
            # Asked before the prompt is tokenized, so that a busy worker does not spend time on it.
            self._slots.check(request_id)
            text = self._text
            if text is None:
                raise WorkerNotReady(self._slots.state)
            prompt = self._tokenizing.call(text.encode_prompt, request.prompt, request.system, request.raw)
            check_context(len(prompt), request.max_tokens, min(self._context_tokens, text.context_length))
            slot = self._slots.take(request_id)
        except RbeeError:
            self._place.metrics.count(Outcome.REFUSED)
            raise
        self._place.metrics.tokens_in.inc(len(prompt))
        inference = Inference(self._place, request, text, prompt, slot, self._forget)
        self._active[request_id] = inference
        return inference

    def cancel(self, request_id: str, timeout_s: float) -> None:
        """End a request and wait, for a bounded time, until its slot is free; an unknown id is no error."""
        inference = self._active.get(request_id)
        if inference is not None:
            inference.cancel()
            inference.wait_released(timeout_s)

    def cancel_all(self) -> None:
        """End all requests, without waiting."""
        for inference in list(self._active.values()):
            inference.cancel()

    def _forget(self, inference: Inference) -> None:
        if self._active.get(inference.request_id) is inference:
            del self._active[inference.request_id]


def check_context(prompt_tokens: int, max_tokens: int, context_tokens: int) -> None:
    """Whether a prompt and the longest answer to it fit.

    Raises:
        InvalidRequest: they do not; the violation carries the three numbers.
    """
    if prompt_tokens < 1:
        raise InvalidRequest([{"field": "prompt", "constraint": "tokens", "message": "has no tokens"}])
    if prompt_tokens + max_tokens <= context_tokens:
        return
    numbers = {
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "context_tokens": context_tokens,
    }
    message = (
        f"{prompt_tokens} prompt tokens and max_tokens {max_tokens} exceed the context of "
        f"{context_tokens} tokens"
    )
    raise InvalidRequest([{"field": "prompt", "constraint": "context", "message": message, **numbers}])
