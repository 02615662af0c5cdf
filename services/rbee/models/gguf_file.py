"""A GGUF file as the rest of rbee sees it: metadata, tensor table, and rows of weights as float32."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_header import TensorEntry, malformed
from rbee.models.gguf_parts import read_headers

Float32 = npt.NDArray[np.float32]

# ``gguf.dequantize`` works on groups of 16 rows; with rows of this many weights a group stays in the second
# level cache, which is 1.2 to 1.5 times faster than the tensors' own row lengths (measured for ten types).
_WEIGHTS_PER_ROW = 16_384
_GUESSED = int(LlamaFileType.GUESSED)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file; ``shape`` is in numpy order, so ``(rows, columns)`` for a weight matrix."""

    name: str
    shape: tuple[int, ...]
    quantization: str
    nbytes: int
    parameters: int
    entry: TensorEntry
    path: Path
    """The file that it lies in: one of several, for a split model."""


@dataclass(frozen=True)
class GgufSummary:
    """What a catalog shows of a model before anything is converted."""

    architecture: str
    quantization: str
    vocab_size: int | None
    eos_token_id: int
    context_length: int | None
    block_count: int | None


@dataclass(frozen=True)
class GgufFile:
    """A readable GGUF. Metadata values are plain Python: str, int, float, bool, or a list of these.

    Of a split model it is all parts: ``path`` and ``metadata`` are the first one's.
    """

    path: Path
    size_bytes: int
    metadata: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]
    header_bytes: int = 0
    """What precedes the tensors in its files: metadata, most of it the vocabulary, and the tables."""

    @property
    def architecture(self) -> str:
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise malformed("it names no architecture (general.architecture)")
        return value

    @cached_property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors.values())

    def get(self, key: str, default: object = None) -> object:
        return self.metadata.get(key, default)

    def arch(self, key: str, default: object = None) -> object:
        """The value of ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> object:
        """The value of a key without which the model cannot be used; ModelIncompatible when it is missing."""
        if key not in self.metadata:
            raise ModelIncompatible(
                f"The GGUF lacks the metadata key {key}", details={"format": "gguf", "key": key}
            )
        return self.metadata[key]

    def summary(self) -> GgufSummary:
        tokens = self.get("tokenizer.ggml.tokens")
        vocab_size = _integer(self.arch("vocab_size"))
        if vocab_size is None and isinstance(tokens, list):
            vocab_size = len(tokens)
        eos = _integer(self.get("tokenizer.ggml.eos_token_id"))
        return GgufSummary(
            architecture=self.architecture,
            quantization=self.quantization,
            vocab_size=vocab_size,
            eos_token_id=2 if eos is None else eos,
            context_length=_integer(self.arch("context_length")),
            block_count=_integer(self.arch("block_count")),
        )

    @cached_property
    def quantization(self) -> str:
        """``general.file_type`` as a name such as ``Q4_K_M``; without it the most frequent tensor type."""
        file_type = _integer(self.get("general.file_type"))
        if file_type is not None:
            try:
                name = LlamaFileType(file_type & ~_GUESSED).name
            except ValueError:
                pass  # a file type that this version of the library does not know; fall back to the tensors
            else:
                return name.removeprefix("MOSTLY_").removeprefix("ALL_")
        counted = Counter(tensor.quantization for tensor in self.tensors.values())
        return counted.most_common(1)[0][0] if counted else "unknown"

    def tensor_float32(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Rows ``start`` to ``stop`` of a tensor, dequantised; a one-dimensional tensor counts as one row.

        Only the bytes of these rows are read. The result is a fresh, writable array of the tensor's shape
        (or of ``(stop - start, columns)``). Raises ModelIncompatible for a type that cannot be dequantised.
        """
        tensor = self.tensors[name]
        columns = tensor.shape[-1]
        rows = tensor.parameters // columns
        stop = rows if stop is None else stop
        row_bytes = tensor.nbytes // rows
        raw = _read(tensor.path, tensor.entry.offset + start * row_bytes, (stop - start) * row_bytes)
        weights = dequantize(raw, tensor.entry.type, name)
        whole = start == 0 and stop == rows
        return weights.reshape(tensor.shape if whole else (stop - start, columns))


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file, or of all parts by the first; weights are read when asked for.

    Raises ModelNotFound for a missing file, and ModelIncompatible for everything that is not a complete
    GGUF: another extension or magic, a wrong version, truncated data, impossible counts, sizes or offsets,
    parts that are missing or do not belong together.
    """
    if path.suffix.lower() != ".gguf":
        raise malformed("its name does not end in .gguf")
    headers = read_headers(path)
    tensors = {
        entry.name: _tensor(entry, part) for part, header in headers for entry in header.tensors.values()
    }
    size = sum(header.size_bytes for _, header in headers)
    before_tensors = sum(
        min((entry.offset for entry in header.tensors.values()), default=header.size_bytes)
        for _, header in headers
    )
    return GgufFile(path, size, headers[0][1].metadata, tensors, before_tensors)


def _tensor(entry: TensorEntry, path: Path) -> GgufTensor:
    return GgufTensor(
        name=entry.name,
        shape=entry.shape,
        quantization=entry.type.name,
        nbytes=entry.nbytes,
        parameters=int(np.prod(entry.shape, dtype=object)),
        entry=entry,
        path=path,
    )


def _read(path: Path, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    # Plain reads instead of a memory map: a file that shrinks meanwhile is an error and not a SIGBUS, and
    # the pages of the file do not count as memory of this process.
    buffer = np.empty(nbytes, np.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            os.lseek(file.fileno(), offset, os.SEEK_SET)
            view, done = buffer.data, 0
            while done < nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise malformed("it changed while it was read")
                done += count
    except OSError as error:
        raise malformed(f"it cannot be read ({error.strerror or error})") from None
    return buffer


def dequantize(raw: npt.NDArray[np.uint8], type_: GGMLQuantizationType, name: str) -> Float32:
    """The weights of whole quantisation blocks as a flat, writable float32 array."""
    block, block_bytes = GGML_QUANT_SIZES[type_]
    row_bytes = max(1, _WEIGHTS_PER_ROW // block) * block_bytes
    rows = raw.size // row_bytes
    # Blocks are independent of each other, so that any grouping of them into rows gives the same weights.
    shaped = [raw[: rows * row_bytes].reshape(rows, row_bytes), raw[rows * row_bytes :].reshape(1, -1)]
    try:
        pieces = [gguf.dequantize(part, type_).reshape(-1) for part in shaped if part.size]
    except NotImplementedError:
        raise ModelIncompatible(
            f"The tensor {name} has the type {type_.name}, which cannot be dequantised",
            details={"format": "gguf", "tensor": name, "type": type_.name},
            suggestion="Use another quantisation of the model",
        ) from None
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
