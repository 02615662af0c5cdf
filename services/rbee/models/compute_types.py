"""The engine's compute types: how each stores weights, how large a model becomes, which one to take."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from rbee.core.errors import BackendUnavailable, InvalidRequest

if TYPE_CHECKING:
    from rbee.models.gguf_file import GgufFile

# Models with less than this in float32 stay in it on a CPU: they fit into its caches, so that int8 is not
# faster (random models of 0.5, 12 and 55 MB at one stream: 0.5, 2 and 1.6 times the tokens per second), and
# there is hardly any memory to save.
FLOAT32_LIMIT_BYTES = 8 * 2**20
# What a loaded model takes, against its size on disk (weights, activations and the cache of keys and values).
MEMORY_FACTOR = 1.2
AUTO = "auto"
_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"


class StoredType(StrEnum):
    """Element types of the engine's model file, in the order of its type ids."""

    FLOAT32 = "float32"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def type_id(self) -> int:
        return list(StoredType).index(self)

    @property
    def itemsize(self) -> int:
        return {"float32": 4, "int32": 4, "int8": 1}.get(self.value, 2)


class ComputeType(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT16 = "int16"
    INT8 = "int8"
    INT8_FLOAT32 = "int8_float32"
    INT8_FLOAT16 = "int8_float16"
    INT8_BFLOAT16 = "int8_bfloat16"

    @property
    def matrix_type(self) -> StoredType:
        """How linear layers and embeddings are stored."""
        return StoredType(self.value.partition("_")[0])

    @property
    def other_type(self) -> StoredType:
        """How norms and biases are stored."""
        name = self.value.rpartition("_")[2]
        return StoredType(name) if "float" in name else StoredType.FLOAT32


def parse_compute_type(text: str) -> ComputeType:
    try:
        return ComputeType(text)
    except ValueError:
        raise _invalid(text, [str(known) for known in ComputeType]) from None


def _invalid(text: str, accepted: list[str]) -> InvalidRequest:
    listed = ", ".join([AUTO, *accepted])
    message = f"'{text[:40]}' is not available here; choose one of {listed}"
    return InvalidRequest([{"field": "worker.compute_type", "message": message}])


def estimate_converted_bytes(gguf: GgufFile, compute_type: str) -> int:
    """The size of the converted folder, a few per cent high rather than low (tokenizer files are a guess)."""
    chosen = parse_compute_type(compute_type)
    matrix, other = chosen.matrix_type.itemsize, chosen.other_type.itemsize
    total = 2**20
    for tensor in gguf.tensors.values():
        if len(tensor.shape) > 1:
            scales = (
                4 * (tensor.parameters // tensor.shape[-1]) if chosen.matrix_type is StoredType.INT8 else 0
            )
            total += matrix * tensor.parameters + scales
        else:
            total += other * tensor.parameters
    if chosen.matrix_type is StoredType.INT8 and _OUTPUT not in gguf.tensors and _EMBEDDINGS in gguf.tensors:
        # Smoothing gives the output projection weights of its own.
        shared = gguf.tensors[_EMBEDDINGS]
        total += shared.parameters + 4 * (shared.parameters // shared.shape[-1])
    # What lies behind the last tensor, or between two, is nothing that a conversion writes.
    return total + 2 * gguf.header_bytes


def choose_compute_type(
    setting: str, backend: str, gguf_or_size: GgufFile | int, memory_available_bytes: int
) -> str:
    """The compute type for ``worker.compute_type = setting`` on a device of this backend.

    ``gguf_or_size`` is the model, or the size in bytes of its weights in float32. ``auto`` is float32 on a
    CPU while the float32 weights stay under 8 MB and fit into the available memory, else int8, whose smoothed
    weights keep the quality; on CUDA it is int8_float16. Raises InvalidRequest, naming the setting, for a
    value the device does not support.
    """
    if setting == AUTO:
        if backend == "cuda":
            return ComputeType.INT8_FLOAT16.value
        size = gguf_or_size if isinstance(gguf_or_size, int) else 4 * gguf_or_size.parameters
        fits = size < FLOAT32_LIMIT_BYTES and size * MEMORY_FACTOR <= memory_available_bytes
        return (ComputeType.FLOAT32 if fits else ComputeType.INT8).value
    supported = _supported_by_device(backend)
    if setting not in supported:
        raise _invalid(setting, sorted(supported))
    return setting


def _supported_by_device(backend: str) -> set[str]:
    # The engine's native library is loaded only where an explicit compute type has to be checked.
    import ctranslate2

    try:
        supported = set(ctranslate2.get_supported_compute_types(backend))
    except (RuntimeError, ValueError):
        raise BackendUnavailable(backend, ["cpu"]) from None
    return supported & {str(known) for known in ComputeType}
