"""Tiny GGUF models of every architecture and quantisation, with random or given weights.

Files are complete: llama.cpp loads them, and so does our conversion. What a test wants wrong or different it
states: other metadata, other tensors, tensors left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType

from .k_quants import K_QUANTS, quantize_k

Array = npt.NDArray[np.float32]

NEOX_WITH_BIASES = {"qwen2"}
QUERY_KEY_NORMS = {"qwen3", "gemma3"}
POST_NORMS = {"gemma3"}
FUSED = {"phi3"}
ALWAYS_TIED = {"gemma", "gemma3"}


@dataclass(frozen=True)
class TinyModel:
    """Sizes of a model; K-quantisations need rows (``width``, ``inner``) in multiples of 256."""

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 4
    heads_kv: int = 2
    head_dim: int = 16
    inner: int = 96
    context: int = 512
    tied: bool = False
    seed: int = 0
    spread: float = 0.25
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Array | None] = field(default_factory=dict)

    def with_(self, **changes: Any) -> TinyModel:
        return replace(self, **changes)

    @property
    def is_tied(self) -> bool:
        return self.tied or self.architecture in ALWAYS_TIED

    def all_metadata(self) -> dict[str, Any]:
        """The file's keys; ``metadata`` adds, replaces and, with None, removes."""
        arch = self.architecture
        found: dict[str, Any] = {
            "general.file_type": 0,
            f"{arch}.context_length": self.context,
            f"{arch}.embedding_length": self.width,
            f"{arch}.block_count": self.layers,
            f"{arch}.feed_forward_length": self.inner,
            f"{arch}.attention.head_count": self.heads,
            f"{arch}.attention.head_count_kv": self.heads_kv,
            f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{arch}.attention.key_length": self.head_dim,
            f"{arch}.attention.value_length": self.head_dim,
            f"{arch}.rope.dimension_count": self.head_dim,
            f"{arch}.rope.freq_base": 10000.0,
            **letter_tokenizer(),
        }
        for key, value in self.metadata.items():
            full = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{arch}.{key}"
            found[full] = value
        return {key: value for key, value in found.items() if value is not None}

    def all_tensors(self) -> dict[str, Array]:
        """Random weights, the same for the same seed; ``tensors`` adds, replaces and, with None, removes."""
        rng = np.random.default_rng(self.seed)

        def matrix(rows: int, columns: int) -> Array:
            return (rng.standard_normal((rows, columns)) * self.spread).astype(np.float32)

        def norm(length: int) -> Array:
            return (1 + rng.standard_normal(length) * 0.1).astype(np.float32)

        vocab = len(self.all_metadata()["tokenizer.ggml.tokens"])
        found = {"token_embd.weight": matrix(vocab, self.width), "output_norm.weight": norm(self.width)}
        if not self.is_tied:
            found["output.weight"] = matrix(vocab, self.width)
        queries, keys, arch = self.heads * self.head_dim, self.heads_kv * self.head_dim, self.architecture
        for index in range(self.layers):
            block = f"blk.{index}."
            found[f"{block}attn_norm.weight"] = norm(self.width)
            found[f"{block}ffn_norm.weight"] = norm(self.width)
            if arch in FUSED:
                found[f"{block}attn_qkv.weight"] = matrix(queries + 2 * keys, self.width)
                found[f"{block}ffn_up.weight"] = matrix(2 * self.inner, self.width)
            else:
                for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
                    found[f"{block}{name}.weight"] = matrix(rows, self.width)
                    if arch in NEOX_WITH_BIASES:
                        found[f"{block}{name}.bias"] = matrix(1, rows)[0]
                found[f"{block}ffn_gate.weight"] = matrix(self.inner, self.width)
                found[f"{block}ffn_up.weight"] = matrix(self.inner, self.width)
            found[f"{block}attn_output.weight"] = matrix(self.width, queries)
            found[f"{block}ffn_down.weight"] = matrix(self.width, self.inner)
            if arch in QUERY_KEY_NORMS:
                found[f"{block}attn_q_norm.weight"] = norm(self.head_dim)
                found[f"{block}attn_k_norm.weight"] = norm(self.head_dim)
            if arch in POST_NORMS:
                found[f"{block}post_attention_norm.weight"] = norm(self.width)
                found[f"{block}post_ffw_norm.weight"] = norm(self.width)
        for name in ("token_embd.weight", "output.weight"):
            if name in found:
                found[name][:2] = (
                    0  # control tokens, which llama.cpp would end at, are never the most probable
                )
        return {name: value for name, value in {**found, **self.tensors}.items() if value is not None}

    def write(self, path: Path, *, tensors_per_part: int = 0) -> Path:
        """Write the file; matrices in ``quantization``, vectors in float32.

        With ``tensors_per_part`` it is split as llama.cpp's own writer does it; returns the first part.
        """
        writer = gguf.GGUFWriter(path, self.architecture, split_max_tensors=tensors_per_part)
        for key, value in self.all_metadata().items():
            add_metadata(writer, key, value)
        for name, value in self.all_tensors().items():
            if value.ndim > 1 and self.quantization is not GGMLQuantizationType.F32:
                kind = self.quantization
                data = quantize_k(value, kind) if kind in K_QUANTS else gguf.quantize(value, kind)
                raw = None if kind is GGMLQuantizationType.F16 else kind
                writer.add_tensor(name, data, raw_dtype=raw)
            else:
                writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if not tensors_per_part:
            return path
        return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def letter_tokenizer(tokens: int = 200) -> dict[str, Any]:
    """A BPE tokenizer of printable ASCII: two control tokens, single characters, then pairs of letters.

    Every token is whole UTF-8, so that llama.cpp reports the probabilities of any of them.
    """
    singles = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    pairs = [f"{a}{b}" for a in "etaoinshrdlu" for b in "etaoinshrdlu"]
    pieces = ["<s>", "</s>", *singles, *pairs][:tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(pieces) - 2),
        "tokenizer.ggml.merges": [f"{piece[0]} {piece[1]}" for piece in pieces[2 + len(singles) :]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def add_metadata(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value with the type that files in the wild use for it."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_key_value(key, value, GGUFValueType.UINT32 if value >= 0 else GGUFValueType.INT32)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
