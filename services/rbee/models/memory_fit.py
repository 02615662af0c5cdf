"""Whether a loaded model fits into memory, before anything is converted: a pure calculation.

What a worker takes is weights, the cache of keys and values, the engine's working memory while it reads a
prompt, and the process itself. The engine's part was measured with CTranslate2 4.8 on the embedded model
(SmolLM2-135M: 30 layers, 9 heads, 3 of keys and values, vocabulary 49,152), two threads, as the growth of
resident memory over a model that has made one token. Megabytes, and in brackets what is calculated here:

=======  ======  ===========  =============
context  slots   float32      int8
=======  ======  ===========  =============
512      1       106 (110)
1,024    1       198 (207)    201 (207)
2,048    1       461 (510)    454 (510)
2,048    2       932 (1,020)
2,048    4                    1,789 (2,040)
=======  ======  ===========  =============

The process: 74 MB of private memory for a worker of a tiny model (96), 135 to 139 MB beside the weights
of the embedded one (157), which has 49,152 tokens more. Nothing was measured on CUDA: what is added for a
context and its libraries, ``_CUDA_CONTEXT`` and ``_CUDA_HOST``, is an assumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
CUDA = "cuda"

_PROCESS = 96 * MIB
_PROCESS_PER_TOKEN = 1300
"""Bytes per token of the vocabulary: the tokenizer, its texts, and a row of logits."""
_RUN = 48 * MIB
"""Buffers of one run that do not depend on the length of its prompt."""
_CUDA_CONTEXT = 512 * MIB
_CUDA_HOST = 384 * MIB
_SCORE_MATRICES = 2
"""Attention scores are held twice, before and after the softmax: heads times context times context."""
_INNER_ROWS, _HIDDEN_ROWS = 4, 8
"""Rows of the feed-forward network and of the hidden state that are held at once for each token."""


@dataclass(frozen=True)
class ModelShape:
    """What of a decoder decides how much memory it takes."""

    weights_bytes: Mapping[str, int]
    """By compute type; never less than the folder of that type takes on disk."""
    layers: int
    heads: int
    heads_kv: int
    head_dim: int
    width: int
    inner: int
    vocabulary: int
    context_length: int


@dataclass(frozen=True)
class Terms:
    """How a worker is to run a model; ``context_tokens`` is what each of its slots may hold."""

    compute_type: str
    context_tokens: int
    slots: int
    backend: str


@dataclass(frozen=True)
class Need:
    """Memory in bytes: what the model itself takes, and what running it takes besides."""

    model: int = 0
    overhead: int = 0

    def mb(self, *, with_overhead: bool = True) -> int:
        """In MB, rounded up."""
        return -(-(self.model + (self.overhead if with_overhead else 0)) // MIB)


@dataclass(frozen=True)
class Fit:
    """What a worker needs of the host's memory, and on CUDA of the device's."""

    ram: Need
    vram: Need | None = None


def calculate_fit(shape: ModelShape, terms: Terms) -> Fit:
    """The memory of a worker with every slot in use up to its context.

    On CUDA the weights pass through the host's memory while they are loaded; cache and working memory are
    the device's alone.
    """
    weights, tokens = shape.weights_bytes[terms.compute_type], min(terms.context_tokens, shape.context_length)
    itemsize = 2 if terms.backend == CUDA and terms.compute_type.endswith("float16") else 4
    per_token = 2 * shape.layers * shape.heads_kv * shape.head_dim
    cache = terms.slots * tokens * per_token * itemsize
    rows = tokens * (_INNER_ROWS * shape.inner + _HIDDEN_ROWS * shape.width)
    scores = _SCORE_MATRICES * shape.heads * tokens * tokens
    running = terms.slots * (_RUN + (rows + scores) * itemsize)
    process = _PROCESS + _PROCESS_PER_TOKEN * shape.vocabulary
    if terms.backend == CUDA:
        device = Need(weights + cache, running + _CUDA_CONTEXT)
        return Fit(Need(weights, process + _CUDA_HOST), device)
    return Fit(Need(weights + cache, running + process))


@dataclass(frozen=True)
class Room:
    """Memory that is free for one more worker, in MB; ``vram_mb`` is None where no device is asked for.

    A stated amount is for models: processes and their working memory are not counted against it.
    """

    ram_mb: int
    vram_mb: int | None = None
    is_ram_stated: bool = False
    is_vram_stated: bool = False


@dataclass(frozen=True)
class Amount:
    """One comparison: what is needed of a resource (``ram``, ``vram``) and what is free of it, in MB."""

    resource: str
    required_mb: int
    available_mb: int

    @property
    def is_enough(self) -> bool:
        return self.required_mb <= self.available_mb


def compare(fit: Fit, room: Room) -> list[Amount]:
    """The comparisons for a fit, the host's memory first."""
    amounts = [Amount("ram", fit.ram.mb(with_overhead=not room.is_ram_stated), room.ram_mb)]
    if fit.vram is not None:
        required = fit.vram.mb(with_overhead=not room.is_vram_stated)
        amounts.append(Amount("vram", required, room.vram_mb or 0))
    return amounts


def is_enough(fit: Fit, room: Room) -> bool:
    return all(amount.is_enough for amount in compare(fit, room))
