"""Everything a GGUF's metadata says about the computation, checked: honoured exactly or refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rbee.models.architectures import Architecture
from rbee.models.gguf_file import GgufFile
from rbee.models.model_metadata import Metadata
from rbee.models.rope_scaling import ROPE_KEYS, Rope, resolve_rope

_READ_KEYS = ROPE_KEYS | {
    "context_length",
    "embedding_length",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
}
# They describe the file and change nothing: sizes are taken from the tensors themselves.
_DESCRIPTIVE_KEYS = {"vocab_size", "feed_forward_length", "tensor_data_layout"}
# Accepted at the value that means "not used" only.
_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
}
_LOCAL_ROPE_BASE = 10_000.0
_MOST_HEADS = 4096


@dataclass(frozen=True)
class DecoderSettings:
    """The numbers of one decoder. ``ropes`` has one entry per layer, None for a layer without rotation."""

    layers: int
    heads: int
    heads_kv: int
    head_dim: int
    embedding_length: int
    norm_epsilon: float
    ropes: tuple[Rope | None, ...]
    rope_tensors: tuple[str, ...]
    # Queries times keys are multiplied by this before the softmax (without the rotation's magnitude).
    attention_scale: float
    embedding_scale: float
    residual_scale: float
    output_scale: float
    # How many positions are exact, and the metadata key that made it less than the file's context length.
    context_length: int
    context_limited_by: str | None


def read_settings(gguf: GgufFile, architecture: Architecture) -> DecoderSettings:
    """Read and check the metadata; ModelIncompatible names the first key that cannot be honoured."""
    metadata = Metadata(gguf)
    _refuse_unknown_keys(metadata, architecture)
    layers = _positive(metadata, "block_count")
    if layers > len(gguf.tensors):
        raise metadata.refusal("block_count", f"the file has only {len(gguf.tensors)} tensors")
    heads = _positive(metadata, "attention.head_count")
    if heads > _MOST_HEADS:
        raise metadata.refusal("attention.head_count", f"at most {_MOST_HEADS} heads are possible")
    heads_kv = metadata.integer("attention.head_count_kv", heads) or heads
    embedding_length = _positive(metadata, "embedding_length")
    head_dim = metadata.integer("attention.key_length", embedding_length // heads)
    if not 0 < head_dim <= 1024:
        raise metadata.refusal("attention.key_length", "a length from 1 to 1024 is needed")
    if metadata.integer("attention.value_length", embedding_length // heads) != head_dim:
        raise metadata.refusal("attention.value_length", f"it must equal the key length {head_dim}")
    if heads % heads_kv:
        raise metadata.refusal("attention.head_count_kv", f"{heads} heads cannot share them evenly")
    context_length = _positive(metadata, "context_length")
    rope = resolve_rope(gguf, metadata, head_dim, context_length)
    limit, limited_by = _context_limit(metadata, rope, context_length)
    return DecoderSettings(
        layers=layers,
        heads=heads,
        heads_kv=heads_kv,
        head_dim=head_dim,
        embedding_length=embedding_length,
        norm_epsilon=metadata.number("attention.layer_norm_rms_epsilon"),
        ropes=tuple(_rope_of_layer(metadata, architecture, rope, layer) for layer in range(layers)),
        rope_tensors=rope.tensors,
        attention_scale=metadata.number("attention.scale", 0.0) or 1 / math.sqrt(head_dim),
        embedding_scale=_embedding_scale(metadata, architecture, embedding_length),
        residual_scale=metadata.number("residual_scale", 0.0) or 1.0,
        output_scale=1 / (metadata.number("logit_scale", 0.0) or 1.0),
        context_length=limit,
        context_limited_by=limited_by,
    )


def _refuse_unknown_keys(metadata: Metadata, architecture: Architecture) -> None:
    understood = _READ_KEYS | _DESCRIPTIVE_KEYS | architecture.own_keys
    for key in metadata.names():
        if key in understood:
            continue
        neutral = _NEUTRAL_VALUES.get(key)
        if neutral is None:
            raise metadata.refusal(key, "this part of the computation is not known to the engine")
        if metadata.gguf.arch(key) not in neutral:
            raise metadata.refusal(key, "the engine cannot compute this")
    if architecture.finetuned_switches_rotation and metadata.gguf.arch("rope.scaling.finetuned") is False:
        raise metadata.refusal("rope.scaling.finetuned", "the engine cannot compute this without rotation")


def _positive(metadata: Metadata, key: str) -> int:
    value = metadata.integer(key)
    if value == 0:
        raise metadata.refusal(key, "a positive number is needed")
    return value


def _embedding_scale(metadata: Metadata, architecture: Architecture, length: int) -> float:
    if architecture.embeddings_scaled_by_length:
        return math.sqrt(length)
    return metadata.number("embedding_scale", 0.0) or 1.0


def _context_limit(metadata: Metadata, rope: Rope, context_length: int) -> tuple[int, str | None]:
    """The engine's sliding window is not exact while a prompt is read, so that no sequence may outgrow it.

    Up to its window, a layer with a window and one without are the same.
    """
    limit, reason = context_length, None
    if rope.context_limit is not None and rope.context_limit < limit:
        limit, reason = rope.context_limit, "rope.scaling.original_context_length"
    window = metadata.integer("attention.sliding_window", 0)
    if 0 < window < limit:
        limit, reason = window, "attention.sliding_window"
    return limit, reason


def _rope_of_layer(metadata: Metadata, architecture: Architecture, rope: Rope, layer: int) -> Rope | None:
    if architecture.rotary_skipped_every and (layer + 1) % architecture.rotary_skipped_every == 0:
        return None
    if architecture.full_attention_every and (layer + 1) % architecture.full_attention_every:
        base = metadata.number("rope.freq_base_swa", _LOCAL_ROPE_BASE)
        return replace(rope, base=base, linear_factor=1.0, divisors=None, llama3=None, magnitude=1.0)
    return rope
