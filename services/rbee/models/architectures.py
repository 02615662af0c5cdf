"""The table of GGUF architectures that the engine computes exactly, and what each of them needs.

An entry is here because a test compares its logits with llama.cpp on the same file
(tests/integration/test_reference_architectures.py). To add one: add a row, then its test case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import GgufFile


class Activation(StrEnum):
    SILU = "silu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True)
class Architecture:
    """How a decoder with RMS norms and a gated feed-forward network differs from its relatives.

    Every field is one decision of the conversion; defaults are those of Llama. Biases of linear layers and
    a separate output matrix are optional in every architecture and are taken when the file has them.
    """

    name: str
    # Rotary pairs are (2i, 2i+1) when interleaved, as converters permute Llama's rows, else (i, i + dim/2).
    rotary_interleaved: bool = False
    activation: Activation = Activation.SILU
    # RMS norms on each head's queries and keys, before the rotation.
    query_key_norm: bool = False
    # A second norm behind attention and feed-forward, before the residual sum.
    post_norms: bool = False
    # One matrix holds the gate rows and below them the up rows.
    fused_gate_up: bool = False
    # Embeddings are multiplied by the square root of their length.
    embeddings_scaled_by_length: bool = False
    # Every n-th layer has no rotary embedding; 0 means that all have.
    rotary_skipped_every: int = 0
    # Every n-th layer attends to everything, the others to a window with a rotary base of their own.
    full_attention_every: int = 0
    # The key rope.scaling.finetuned, elsewhere a remark, turns the rotation off when it is false.
    finetuned_switches_rotation: bool = False
    # Metadata keys (without the architecture's prefix) that only this architecture has a meaning for.
    own_keys: frozenset[str] = field(default_factory=frozenset)


_TABLE = (
    Architecture("llama", rotary_interleaved=True),
    # Converters write Mistral models as "llama"; the other two names occur for the same layout.
    Architecture("mistral", rotary_interleaved=True),
    Architecture("mistral3", rotary_interleaved=True),
    Architecture("qwen2"),
    Architecture("qwen3", query_key_norm=True),
    Architecture("phi3", fused_gate_up=True),
    Architecture("gemma", activation=Activation.GELU_TANH, embeddings_scaled_by_length=True),
    Architecture(
        "gemma3",
        activation=Activation.GELU_TANH,
        embeddings_scaled_by_length=True,
        query_key_norm=True,
        post_norms=True,
        full_attention_every=6,
        own_keys=frozenset({"rope.freq_base_swa"}),
    ),
    Architecture(
        "granite",
        rotary_interleaved=True,
        finetuned_switches_rotation=True,
        own_keys=frozenset({"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}),
    ),
    Architecture("smollm3", rotary_interleaved=True, rotary_skipped_every=4),
    Architecture("internlm2", rotary_interleaved=True),
    Architecture("ernie4_5", rotary_interleaved=True),
    Architecture("exaone"),
)

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in _TABLE}


def architecture_of(gguf: GgufFile) -> Architecture:
    """The table's entry for a file; ModelIncompatible, naming what was found, when there is none."""
    kind = gguf.get("general.type", "model")
    if kind != "model":
        raise ModelIncompatible(
            f"The GGUF holds no model but a file of the type {str(kind)[:40]!r}",
            details={"format": "gguf", "type": str(kind)[:40]},
        )
    entry = ARCHITECTURES.get(gguf.architecture)
    if entry is None:
        supported = sorted(ARCHITECTURES)
        found = gguf.architecture[:60]
        raise ModelIncompatible(
            f"The model architecture '{found}' is not supported; supported are {', '.join(supported)}",
            details={"architecture": found, "supported": supported},
            suggestion="Use a model of a supported architecture",
        )
    return entry
