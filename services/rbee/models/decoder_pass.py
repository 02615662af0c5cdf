"""A forward pass in numpy and float32 that reads a model's weights block by block, one layer after the other.

It computes what the engine computes from the same layout, for the few hundred tokens of a calibration: memory
holds the activations of these tokens and one layer's matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from rbee.models.architectures import Activation, architecture_of
from rbee.models.ct2_layout import EMBEDDINGS, PROJECTION, Layout
from rbee.models.gguf_file import Float32, GgufFile
from rbee.models.numpy_threads import Each
from rbee.models.rope_scaling import Rope
from rbee.models.smoothing_sites import (
    Site,
    layer_prefix,
    layer_sites,
    norm_names,
    projection_site,
)

BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Observation:
    """What one site carries: its activations, (tokens, columns), and the rows of its readers, in blocks.

    ``residual`` are the hidden values, (tokens, width), that the readers' output is added to, where it is.
    """

    site: Site
    activations: Float32
    weights: Iterable[Float32]
    residual: Float32 | None = None


Observe = Callable[[Observation], None]


class DecoderPass:
    """The state of one pass: the hidden values of all tokens between two layers.

    Args:
        texts: token ids of separate texts, each beginning at position 0.
        observe: called for every site, in order.
        each: the map over independent pieces of work, which may run them at the same time.
    """

    def __init__(
        self,
        gguf: GgufFile,
        layout: Layout,
        texts: Sequence[Sequence[int]],
        observe: Observe = lambda _observation: None,
        each: Each = map,
    ) -> None:
        self._gguf, self._layout, self._observe, self._each = gguf, layout, observe, each
        self._settings = layout.settings
        self._activate = _ACTIVATIONS[architecture_of(gguf).activation]
        self._interleaved = architecture_of(gguf).rotary_interleaved
        bounds = np.cumsum([0, *map(len, texts)])
        self._texts = [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]
        self._positions = np.concatenate([np.arange(len(text)) for text in texts])
        self._hidden = self._embed(np.concatenate([np.asarray(text, np.int64) for text in texts]))

    def layers(self) -> Iterator[int]:
        """Go through the layers; yields the number of each when it is done."""
        for layer in range(self._settings.layers):
            self._layer(layer)
            yield layer

    def finish(self) -> Float32:
        """The input of the output projection, when all layers are done."""
        normed = self._norm("decoder/layer_norm/gamma", self._hidden)
        self._observe(Observation(projection_site(self._layout), normed, self._blocks(PROJECTION)))
        return normed

    def logits(self, normed: Float32) -> Float32:
        """The logits, (tokens, vocabulary), of what ``finish`` gave."""
        found = np.concatenate([normed @ block.T for block in self._blocks(PROJECTION)], axis=1)
        found = self._biased(PROJECTION, found)
        found *= np.float32(self._settings.output_scale)
        return found

    def _embed(self, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Float32:
        weight = self._layout.weight(EMBEDDINGS)
        rows = np.empty((len(ids), weight.shape[1]), np.float32)
        for token in np.unique(ids):
            rows[ids == token] = weight.row(self._gguf, int(token))
        return rows * np.float32(self._settings.embedding_scale)

    def _layer(self, layer: int) -> None:
        sites, prefix = layer_sites(self._layout, layer), layer_prefix(layer)
        before_attention, before_ffn = norm_names(self._layout, layer)
        (joined,) = self._read(sites.attention_input, self._norm(before_attention, self._hidden))
        (added,) = self._read(sites.attention_output, self._attention(layer, joined), self._hidden)
        self._hidden += self._optional_norm(f"{prefix}post_attention_layer_norm/gamma", added)
        gate, up = self._read(sites.feed_forward_input, self._norm(before_ffn, self._hidden))
        (added,) = self._read(sites.feed_forward_output, self._activate(gate) * up, self._hidden)
        self._hidden += self._optional_norm(f"{prefix}post_feedforward_layer_norm/gamma", added)

    def _read(self, site: Site, activations: Float32, residual: Float32 | None = None) -> list[Float32]:
        """What each reader of a site makes of its activations."""
        matrices = [list(self._each(lambda read: read(), self._readings(name))) for name in site.readers]
        self._observe(Observation(site, activations, list(chain(*matrices)), residual))
        products = (self._product(activations, blocks) for blocks in matrices)
        return [self._biased(name, made) for name, made in zip(site.readers, products, strict=True)]

    def _product(self, activations: Float32, blocks: Iterable[Float32]) -> Float32:
        return np.concatenate(list(self._each(lambda block: activations @ block.T, blocks)), axis=1)

    def _readings(self, name: str) -> Iterator[Callable[[], Float32]]:
        return self._layout.weight(name).readings(self._gguf, BLOCK_BYTES)

    def _attention(self, layer: int, joined: Float32) -> Float32:
        s, prefix = self._settings, f"{layer_prefix(layer)}self_attention/"
        queries, keys = s.heads * s.head_dim, s.heads_kv * s.head_dim
        q = joined[:, :queries].reshape(-1, s.heads, s.head_dim)
        k = joined[:, queries : queries + keys].reshape(-1, s.heads_kv, s.head_dim)
        v = joined[:, queries + keys :].reshape(-1, s.heads_kv, s.head_dim)
        q = self._optional_norm(f"{prefix}q_norm/gamma", q)
        k = self._optional_norm(f"{prefix}k_norm/gamma", k)
        rope = s.ropes[layer]
        if rope is not None:
            q, k = (rotate(x, rope, self._positions, interleaved=self._interleaved) for x in (q, k))
        mixed = np.empty_like(q)

        def attend(text: slice) -> None:
            _attend(q[text], k[text], v[text], s.attention_scale, mixed[text])

        list(self._each(attend, self._texts))
        return mixed.reshape(-1, queries)

    def _biased(self, name: str, product: Float32) -> Float32:
        bias = f"{name.removesuffix('weight')}bias"
        if bias in self._layout.variables:
            product += self._vector(bias)
        return product

    def _norm(self, name: str, values: Float32) -> Float32:
        return rms_norm(values, self._vector(name), self._settings.norm_epsilon)

    def _optional_norm(self, name: str, values: Float32) -> Float32:
        return self._norm(name, values) if name in self._layout.variables else values

    def _vector(self, name: str) -> Float32:
        return np.concatenate(list(self._blocks(name)))

    def _blocks(self, name: str) -> Iterator[Float32]:
        return self._layout.weight(name).blocks(self._gguf, BLOCK_BYTES)


def rms_norm(values: Float32, gamma: Float32, epsilon: float) -> Float32:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    mean = np.mean(np.square(values), axis=-1, keepdims=True, dtype=np.float64)
    normed: Float32 = values * (1 / np.sqrt(mean + epsilon)).astype(np.float32) * gamma
    return normed


def rotate(
    values: Float32, rope: Rope, positions: np.ndarray[tuple[int], np.dtype[np.int64]], *, interleaved: bool
) -> Float32:
    """Rotary embeddings of (tokens, heads, head dimension) at their positions; see ``Rope``."""
    count = rope.dimensions
    steps = rope.base ** (np.arange(0, count, 2) / count) * rope.linear_factor
    if rope.divisors is not None:
        steps = steps * rope.divisors
    angles = (positions[:, None] / steps)[:, None, :]
    cos = (np.cos(angles) * rope.magnitude).astype(np.float32)
    sin = (np.sin(angles) * rope.magnitude).astype(np.float32)
    first = slice(0, count, 2) if interleaved else slice(0, count // 2)
    second = slice(1, count, 2) if interleaved else slice(count // 2, count)
    a, b, out = values[..., first], values[..., second], values.copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out


def _attend(q: Float32, k: Float32, v: Float32, scale: float, out: Float32) -> None:
    """Causal attention of one text; each head of keys and values serves a run of query heads."""
    tokens, shared = len(q), q.shape[1] // k.shape[1]
    hidden = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // shared].T
        scores *= np.float32(scale)
        scores += hidden
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        out[:, head] = scores @ v[:, head // shared]


def _silu(values: Float32) -> Float32:
    with np.errstate(over="ignore"):
        result: Float32 = values / (1 + np.exp(-values))
    return result


def _gelu_tanh(values: Float32) -> Float32:
    inner = np.float32(math.sqrt(2 / math.pi)) * (values + np.float32(0.044715) * values**3)
    result: Float32 = np.float32(0.5) * values * (1 + np.tanh(inner))
    return result


_ACTIVATIONS: dict[Activation, Callable[[Float32], Float32]] = {
    Activation.SILU: _silu,
    Activation.GELU_TANH: _gelu_tanh,
}
