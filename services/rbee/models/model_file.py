"""What lies where in a CTranslate2 ``model.bin``: its layers, its sizes, the memory it takes once loaded.

Format (binary versions 4 to 6, little-endian), as written by ``ctranslate2.specs.model_spec``: u32 version;
model name; u32 revision; u32 number of variables; then per variable its name, u8 rank, u32 dimensions, u8
type, u32 bytes, data; then aliases. A string is u16 length and that many bytes, the last of them zero.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rbee.core.errors import ModelIncompatible

_VERSIONS = range(4, 7)
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_TYPE_BYTES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = ("float32", "float16", "bfloat16")
_MAX_VARIABLES = 1_000_000
_MAX_RANK = 8
_LAYER = re.compile(r"decoder/layer_(\d+)/")


@dataclass(frozen=True, slots=True)
class Variable:
    """One tensor; ``end`` is the offset after its last byte, ``value`` that of a single integer."""

    name: str
    shape: tuple[int, ...]
    type: str
    end: int
    value: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFile:
    """The layout of one ``model.bin``."""

    size_bytes: int
    variables: tuple[Variable, ...]
    layer_ends: tuple[int, ...]
    """Rising offsets, each after the last byte of one more layer; the file's end if it names no layers."""

    def layers_read(self, position: int) -> int:
        """How many layers lie wholly before ``position``."""
        return sum(1 for end in self.layer_ends if end <= position)

    def loaded_bytes(self, compute_type: str) -> int:
        """Memory of the weights once loaded: quantised ones keep their type, the others are converted."""
        target = next((name for name in _FLOATS if compute_type.endswith(name)), "float32")
        keeps = "int16" if compute_type == "int16" else "int8" if compute_type.startswith("int8") else None
        return sum(
            v.elements * _TYPE_BYTES[v.type if v.type in (keeps, "int32") else target] for v in self.variables
        )

    def cache_bytes_per_token(self) -> int:
        """Memory of keys and values for one token of context, in float32; 0 when the layout does not tell."""
        shapes = {v.name: v.shape for v in self.variables}
        joined = shapes.get("decoder/layer_0/self_attention/linear_0/weight", ())
        output = shapes.get("decoder/layer_0/self_attention/linear_1/weight", ())
        if len(joined) != 2 or len(output) != 2:
            return 0
        return max(0, joined[0] - output[1]) * len(self.layer_ends) * 4


def read_model_file(path: Path) -> ModelFile:
    """The layout of ``path``, without reading its weights.

    Raises:
        ModelIncompatible: it is missing, unreadable or cut short.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _layout(size, _variables(file, size))
    except (OSError, struct.error, UnicodeDecodeError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is cut short or damaged"
        )
        raise damaged(f"model.bin: {reason}") from None


def damaged(reason: str) -> ModelIncompatible:
    """The error for a model folder that the engine cannot load."""
    return ModelIncompatible(
        f"The model folder cannot be loaded: {reason}",
        details={"format": "ctranslate2", "reason": reason},
        suggestion="Remove the model and fetch it again: rbee-keeper models remove MODEL",
    )


def _variables(file: BinaryIO, size: int) -> list[Variable]:
    (version,) = _read(file, "<I")
    if version not in _VERSIONS:
        # Left to the engine, which may know it; the whole file counts as one layer then.
        return []
    _text(file)
    _revision, count = _read(file, "<II")
    if count > _MAX_VARIABLES:
        raise damaged("model.bin: it is cut short or damaged")
    variables = []
    for _ in range(count):
        name = _text(file)
        (rank,) = _read(file, "<B")
        if rank > _MAX_RANK:
            raise damaged("model.bin: it is cut short or damaged")
        shape = _read(file, f"<{rank}I")
        type_id, length = _read(file, "<BI")
        end = file.tell() + length
        if type_id >= len(_TYPES) or end > size:
            raise damaged("model.bin: it is cut short or damaged")
        type_ = _TYPES[type_id]
        value = None
        if not shape and type_ not in _FLOATS and length == _TYPE_BYTES[type_]:
            value = int.from_bytes(file.read(length), "little", signed=True)
        file.seek(end)
        variables.append(Variable(name, shape, type_, end, value))
    return variables


def _read(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _text(file: BinaryIO) -> str:
    (length,) = _read(file, "<H")
    return file.read(length).rstrip(b"\0").decode()


def _layout(size: int, variables: Sequence[Variable]) -> ModelFile:
    ends: dict[int, int] = {}
    for variable in variables:
        found = _LAYER.match(variable.name)
        if found:
            layer = int(found.group(1))
            ends[layer] = max(ends.get(layer, 0), variable.end)
    return ModelFile(size, tuple(variables), tuple(sorted(ends.values())) or (size,))
