"""llama.cpp as the reference: log probabilities of the next token at every position of a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float32]
_F32 = 0
_OFF = 0


class Reference:
    """One loaded model. Positions share their prefix in its cache, so that each costs one token."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def top(self, ids: list[int], count: int) -> list[tuple[int, float]]:
        """The ``count`` most probable tokens after ``ids``, best first, with their log probabilities."""
        answer = self._server.handle_completions(
            {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": 0.0, "cache_prompt": True}
        )
        content = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [(entry["id"], entry["logprob"]) for entry in content]

    def logprobs(self, ids: list[int], vocab_size: int) -> Logprobs:
        """Log probabilities of all tokens after every prefix of ``ids``: (positions, vocabulary)."""
        rows = np.full((len(ids), vocab_size), -np.inf, np.float32)
        for position in range(len(ids)):
            for token, logprob in self.top(ids[: position + 1], vocab_size):
                rows[position, token] = logprob
        return rows


@contextmanager
def reference(path: Path, context: int) -> Iterator[Reference]:
    """Load a GGUF with a float32 cache and plain attention, the nearest llama.cpp comes to exact."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = context
    params.n_parallel = 1
    params.port = 0
    params.warmup = False
    params.verbosity = -1
    # One thread: more of them wait for each other at every operation, for seconds on a busy machine.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cache_type_k = _F32
    params.cache_type_v = _F32
    params.flash_attn_type = _OFF
    server = xllamacpp.Server(params)
    try:
        yield Reference(server)
    finally:
        del server
