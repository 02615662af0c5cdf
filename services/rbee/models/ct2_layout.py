"""Lay a GGUF's tensors out as the variables of the engine's decoder: which rows of what go where.

The engine's own specification classes (``ctranslate2.specs``) supply the names and scalar attributes and
check that nothing is missing; weights stay references into the GGUF until the writer reads them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rbee.models.architectures import Activation, Architecture, architecture_of
from rbee.models.ct2_rotary import set_attention_scale, set_rope
from rbee.models.decoder_settings import DecoderSettings, read_settings
from rbee.models.gguf_file import GgufFile
from rbee.models.rope_scaling import Rope
from rbee.models.weights import TensorTable, Weight

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec

EMBEDDINGS, PROJECTION = "decoder/embeddings/weight", "decoder/projection/weight"
_TOKENS, _OUTPUT = "token_embd.weight", "output.weight"

Variable = Weight | npt.NDArray[np.generic]


@dataclass(frozen=True)
class Layout:
    """A model as the engine stores it."""

    spec_name: str
    spec_revision: int
    variables: dict[str, Variable]
    # Names of variables that share the weights of another, with the other's name.
    aliases: dict[str, str]
    # The engine's config.json but for its special tokens.
    config: dict[str, Any]
    settings: DecoderSettings
    vocab_size: int
    # How many variables read each tensor; a tensor that became an attribute has none.
    uses: Counter[str]

    def weight(self, name: str) -> Weight:
        """A variable that is a weight, under its own name or that of an alias."""
        found = self.variables[self.aliases.get(name, name)]
        if not isinstance(found, Weight):
            raise TypeError(f"{name} is a number and not a weight")
        return found


def lay_out(gguf: GgufFile) -> Layout:
    """Plan the conversion without reading weights.

    Raises ModelIncompatible, naming the architecture, key or tensor, for everything that cannot be converted
    exactly: unknown architectures, settings and tensors, missing tensors and wrong shapes.
    """
    architecture = architecture_of(gguf)
    settings = read_settings(gguf, architecture)
    tensors = TensorTable(gguf)
    spec = _empty_spec(architecture, settings)
    vocab_size, width = tensors.rows(_TOKENS), settings.embedding_length
    spec.decoder.embeddings.weight = tensors.matrix(_TOKENS, vocab_size, width)
    spec.decoder.layer_norm.gamma = tensors.vector("output_norm.weight", width)
    # The engine shares tied weights; the specification must be complete before one of them can be an alias.
    is_tied = not tensors.has(_OUTPUT)
    spec.decoder.projection.weight = (
        spec.decoder.embeddings.weight if is_tied else tensors.matrix(_OUTPUT, vocab_size, width)
    )
    if tensors.has("output.bias"):
        spec.decoder.projection.bias = tensors.vector("output.bias", vocab_size)
    for index, layer in enumerate(spec.decoder.layer):
        source = _LayerSource(tensors, architecture, settings, f"blk.{index}.")
        source.fill(layer, settings.ropes[index])
    tensors.uses.update(dict.fromkeys(settings.rope_tensors, 0))
    tensors.refuse_unused()
    spec.decoder.validate()  # the whole model but for the vocabulary, which is not written here
    variables = {name: _plain(value) for name, value in spec.variables().items()}
    if is_tied:
        del variables[PROJECTION]
    return Layout(
        spec_name=spec.name,
        spec_revision=spec.revision,
        variables=variables,
        aliases={PROJECTION: EMBEDDINGS} if is_tied else {},
        config={**spec.config.to_dict(), "layer_norm_epsilon": settings.norm_epsilon},
        settings=settings,
        vocab_size=vocab_size,
        uses=tensors.uses,
    )


def _plain(value: Any) -> Variable:
    return value if isinstance(value, Weight) else np.asarray(value.numpy())


def _empty_spec(architecture: Architecture, settings: DecoderSettings) -> TransformerDecoderModelSpec:
    # The engine's native library is loaded where a model is converted, not where a header is looked at.
    from ctranslate2.specs import TransformerDecoderModelSpec
    from ctranslate2.specs.common_spec import Activation as EngineActivation

    activations = {Activation.SILU: EngineActivation.SWISH, Activation.GELU_TANH: EngineActivation.GELUTanh}
    spec = TransformerDecoderModelSpec.from_config(
        settings.layers,
        settings.heads,
        activation=activations[architecture.activation],
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        num_heads_kv=settings.heads_kv if settings.heads_kv != settings.heads else None,
        head_dim=settings.head_dim,
        qk_norm=architecture.query_key_norm,
        pre_post_layer_norm=architecture.post_norms,
    )
    is_scaled = settings.embedding_scale != 1.0
    spec.decoder.scale_embeddings = np.float32(settings.embedding_scale) if is_scaled else False
    if settings.output_scale != 1.0:
        spec.decoder.scale_outputs = np.float32(settings.output_scale)
    return spec


@dataclass(frozen=True)
class _LayerSource:
    """Fills the specification of one decoder layer from the tensors below ``prefix``."""

    tensors: TensorTable
    architecture: Architecture
    settings: DecoderSettings
    prefix: str

    def fill(self, layer: Any, rope: Rope | None) -> None:
        attention, settings = layer.self_attention, self.settings
        if self.architecture.post_norms:
            norms = {
                "attn_norm": layer.input_layer_norm,
                "post_attention_norm": layer.post_attention_layer_norm,
                "ffn_norm": layer.pre_feedforward_layer_norm,
                "post_ffw_norm": layer.post_feedforward_layer_norm,
            }
        else:
            norms = {"attn_norm": attention.layer_norm, "ffn_norm": layer.ffn.layer_norm}
        if self.architecture.query_key_norm:
            norms |= {"attn_q_norm": attention.q_norm, "attn_k_norm": attention.k_norm}
        for name, norm in norms.items():
            length = (
                settings.head_dim if name in ("attn_q_norm", "attn_k_norm") else settings.embedding_length
            )
            norm.gamma = self.tensors.vector(f"{self.prefix}{name}.weight", length)
        self._fill_attention(attention)
        self._fill_feed_forward(layer.ffn)
        set_rope(attention, rope, settings.head_dim, interleaved=self.architecture.rotary_interleaved)
        set_attention_scale(attention, settings.attention_scale, settings.head_dim, rope)

    def _fill_attention(self, attention: Any) -> None:
        s = self.settings
        queries, keys = s.heads * s.head_dim, s.heads_kv * s.head_dim
        sources = [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)]
        if self.tensors.has(f"{self.prefix}attn_qkv.weight"):
            sources = [("attn_qkv", queries + 2 * keys)]
        self._fill_linear(attention.linear[0], sources, s.embedding_length)
        outputs = [("attn_output", s.embedding_length)]
        self._fill_linear(attention.linear[1], outputs, queries, s.residual_scale)

    def _fill_feed_forward(self, ffn: Any) -> None:
        width, up = self.settings.embedding_length, f"{self.prefix}ffn_up.weight"
        inner = self.tensors.rows(up)
        if self.architecture.fused_gate_up:
            inner //= 2
            ffn.linear_0.weight = self.tensors.stacked([(up, 0, inner)], width)
            ffn.linear_0_noact.weight = self.tensors.stacked([(up, inner, 2 * inner)], width)
        else:
            self._fill_linear(ffn.linear_0, [("ffn_gate", inner)], width)
            self._fill_linear(ffn.linear_0_noact, [("ffn_up", inner)], width)
        self._fill_linear(ffn.linear_1, [("ffn_down", width)], inner, self.settings.residual_scale)

    def _fill_linear(
        self, linear: Any, sources: list[tuple[str, int]], columns: int, factor: float = 1.0
    ) -> None:
        """Put whole matrices below each other, and their biases where at least one of them has one."""
        matrices = [
            self.tensors.matrix(f"{self.prefix}{name}.weight", n, columns, factor) for name, n in sources
        ]
        parts = tuple(part for matrix in matrices for part in matrix.parts)
        linear.weight = Weight(parts, (sum(n for _, n in sources), columns), factor)
        biases = [(f"{self.prefix}{name}.bias", n) for name, n in sources]
        if any(self.tensors.has(name) for name, _ in biases):
            linear.bias = self.tensors.joined(biases, factor)
