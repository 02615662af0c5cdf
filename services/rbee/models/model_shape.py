"""Reads what decides a model's memory: from a GGUF's header, or from a converted folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.core.errors import ModelIncompatible
from rbee.models.compute_types import ComputeType, estimate_converted_bytes
from rbee.models.memory_fit import CUDA, ModelShape
from rbee.models.model_file import ModelFile, read_model_file
from rbee.models.storage import size_on_disk

if TYPE_CHECKING:
    from rbee.models.gguf_file import GgufFile

AS_STORED = "default"
"""The engine's compute type for a folder that is loaded in the type of its own weights."""

_UNSTATED_CONTEXT = 2048
_LONGEST_CONTEXT = 2**24
_USUAL_HEAD_DIM = 64


def shape_of_gguf(gguf: GgufFile) -> ModelShape:
    """The shape of a model that has yet to be converted.

    Raises:
        ModelIncompatible: it cannot be converted, or its header does not say what is needed.
    """
    from rbee.models.architectures import architecture_of
    from rbee.models.decoder_settings import read_settings

    architecture = architecture_of(gguf)
    settings = read_settings(gguf, architecture)
    matrices = {name: tensor.shape for name, tensor in gguf.tensors.items() if len(tensor.shape) == 2}
    # The tensors cannot be larger than the file; a number in the metadata can.
    vocabulary, width = _matrix(matrices, "token_embd.weight")
    rows = {name: shape[0] for name, shape in matrices.items()}
    widest = max((count for name, count in rows.items() if name.endswith("ffn_up.weight")), default=0)
    return ModelShape(
        weights_bytes={str(kind): estimate_converted_bytes(gguf, kind) for kind in ComputeType},
        layers=settings.layers,
        heads=settings.heads,
        heads_kv=settings.heads_kv,
        head_dim=settings.head_dim,
        width=width,
        inner=widest // 2 if architecture.fused_gate_up else widest,
        vocabulary=vocabulary,
        context_length=settings.context_length,
    )


def shape_of_folder(folder: Path, backend: str) -> ModelShape:
    """The shape of a model that the engine can load as it is.

    Raises:
        ModelIncompatible: its ``model.bin`` is missing, cut short or damaged.
    """
    layout = read_model_file(folder / "model.bin")
    try:
        size = size_on_disk(folder)
    except OSError as error:
        raise ModelIncompatible(f"The model folder cannot be read: {error.strerror}") from None
    description = _read_object(folder / "rbee.json")
    stored = _loaded_as_stored(layout, backend)
    weights = {str(kind): max(layout.loaded_bytes(str(kind)), 1) for kind in ComputeType}
    weights[AS_STORED] = max(stored, size)
    own = description.get("compute_type")
    if isinstance(own, str):
        weights[own] = max(weights.get(own, 0), size)
    shapes = {variable.name: variable.shape for variable in layout.variables}
    vocabulary, width = _matrix(shapes, "decoder/embeddings/weight")
    joined, _ = _matrix(shapes, "decoder/layer_0/self_attention/linear_0/weight")
    _, queries = _matrix(shapes, "decoder/layer_0/self_attention/linear_1/weight")
    inner, _ = _matrix(shapes, "decoder/layer_0/ffn/linear_0/weight")
    values = {variable.name: variable.value for variable in layout.variables}
    heads = max(1, values.get("decoder/num_heads") or queries // _USUAL_HEAD_DIM)
    head_dim = max(1, queries // heads)
    return ModelShape(
        weights_bytes=weights,
        layers=len(layout.layer_ends),
        heads=heads,
        heads_kv=max(0, joined - queries) // (2 * head_dim),
        head_dim=head_dim,
        width=width,
        inner=inner,
        vocabulary=vocabulary,
        context_length=_context_length(folder, description),
    )


def _loaded_as_stored(layout: ModelFile, backend: str) -> int:
    """A processor computes in float32; a CUDA device in whatever floating-point type the file has."""
    if backend == CUDA:
        return layout.size_bytes
    return sum(
        variable.elements * 4 if "float" in variable.type else variable.elements * _bytes_of(variable.type)
        for variable in layout.variables
    )


def _bytes_of(integer_type: str) -> int:
    return int(integer_type.removeprefix("int")) // 8


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    shape = shapes.get(name, ())
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def _context_length(folder: Path, description: dict[str, object]) -> int:
    """As the worker takes it; a "no limit" in tokenizer_config.json is a huge number."""
    stated = description.get("context_length")
    if not description:
        stated = _read_object(folder / "tokenizer_config.json").get("model_max_length")
    is_usable = isinstance(stated, int) and 0 < stated < _LONGEST_CONTEXT
    return stated if isinstance(stated, int) and is_usable else _UNSTATED_CONTEXT


def _read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
