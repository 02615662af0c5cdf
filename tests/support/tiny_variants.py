"""Tiny models of every architecture, and of every variant that changes the computation."""

from __future__ import annotations

import numpy as np

from rbee.models.architectures import ARCHITECTURES
from rbee.models.rope_scaling import Llama3Scaling
from support.gguf_factory import Array, TinyModel

GRANITE_SCALES = {
    "attention.scale": 0.3,
    "embedding_scale": 6.0,
    "residual_scale": 0.4,
    "logit_scale": 4.0,
}


def rising(first: float, last: float, count: int = 8) -> Array:
    return np.linspace(first, last, count, dtype=np.float32)


def biases(model: TinyModel) -> dict[str, Array]:
    """A bias for every linear layer that can have one in a Llama file."""
    rng = np.random.default_rng(7)
    lengths = {"attn_output": model.width, "ffn_gate": model.inner, "ffn_up": model.inner}
    lengths |= {"ffn_down": model.width, "attn_k": model.heads_kv * model.head_dim}
    return {
        f"blk.{layer}.{name}.bias": rng.standard_normal(length).astype(np.float32)
        for layer in range(model.layers)
        for name, length in lengths.items()
    }


def longrope(original: int, dimensions: int, factor: float) -> TinyModel:
    half = dimensions // 2
    return TinyModel(
        "phi3",
        context=131_072,
        metadata={
            "rope.dimension_count": dimensions,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": factor,
        },
        tensors={
            "rope_factors_short.weight": rising(1, 3, half),
            "rope_factors_long.weight": rising(2, 9, half),
        },
    )


def yarn(architecture: str, **more: float) -> TinyModel:
    scaling = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
    }
    return TinyModel(architecture, head_dim=32, metadata={**scaling, **more})


VARIANTS = {
    "tied": TinyModel(tied=True),
    "one head of keys and values": TinyModel(heads_kv=1),
    "as many heads of keys as of queries": TinyModel(heads_kv=4),
    "heads wider than the embedding": TinyModel(head_dim=32),
    "biases": TinyModel(tensors=biases(TinyModel())),
    "linear": TinyModel(metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "linear by its old name": TinyModel(metadata={"rope.scale_linear": 4.0}),
    "no scaling despite a factor": TinyModel(
        metadata={"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    ),
    "another base": TinyModel("qwen2", metadata={"rope.freq_base": 1e6}),
    "magnitude": TinyModel("qwen2", metadata={"rope.scaling.attn_factor": 1.3}),
    "yarn": yarn("qwen3"),
    "yarn, interleaved": yarn("llama"),
    "yarn with magnitude": yarn("qwen3", **{"rope.scaling.attn_factor": 1.2}),
    "yarn with its own limits": yarn(
        "mistral3", **{"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}
    ),
    "llama 3 frequencies": TinyModel(
        metadata={"rope.freq_base": 5e5},
        tensors={"rope_freqs.weight": Llama3Scaling(32.0).divisors(5e5, 16).astype(np.float32)},
    ),
    "any frequencies": TinyModel(tensors={"rope_freqs.weight": rising(1, 3)}),
    "frequencies and linear": TinyModel(
        metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        tensors={"rope_freqs.weight": rising(1, 3)},
    ),
    "longrope": longrope(256, 16, 1.19),
    "longrope on a part of each head": longrope(4096, 12, float(np.sqrt(1 + np.log(32) / np.log(4096)))),
    "rotation of a part of each head": TinyModel("phi3", metadata={"rope.dimension_count": 8}),
    "gemma3 with linear and its own local base": TinyModel(
        "gemma3",
        layers=7,
        metadata={
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 256,
        },
    ),
    "granite with its scales": TinyModel("granite", metadata=GRANITE_SCALES),
    "window not reached": TinyModel("qwen3", metadata={"attention.sliding_window": 64}),
}

LAYERS = {"gemma3": 7, "smollm3": 5}
OF_ARCHITECTURES = {
    name: TinyModel(name, layers=LAYERS.get(name, 2), metadata=GRANITE_SCALES if name == "granite" else {})
    for name in ARCHITECTURES
}


def ids_for(model: TinyModel, count: int = 40) -> list[int]:
    vocab = len(model.all_metadata()["tokenizer.ggml.tokens"])
    return [int(token) for token in np.random.default_rng(1).integers(2, vocab, count)]
