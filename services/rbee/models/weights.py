"""References to weights in a GGUF: which rows of which tensors make up one matrix or vector of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import Float32, GgufFile
from rbee.models.model_metadata import Metadata


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a tensor (elements, for a vector); without a tensor, that many zeros."""

    tensor: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Weight:
    """Rows of tensors, one below the other, times ``factor``; a vector if ``shape`` has one dimension.

    ``row_scale`` has a factor for every row (element, of a vector), ``column_scale`` one for every column.
    """

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    factor: float = 1.0
    row_scale: Float32 | None = field(default=None, compare=False)
    column_scale: Float32 | None = field(default=None, compare=False)
    # The largest magnitude of a row that is stored as int8.
    int8_limit: int = 127

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    def with_rows_scaled(self, scale: Float32) -> Weight:
        """The same with every row (element, of a vector) multiplied by its factor in ``scale``."""
        return replace(self, row_scale=scale if self.row_scale is None else self.row_scale * scale)

    def with_columns_scaled(self, scale: Float32) -> Weight:
        """The same matrix with every column multiplied by its factor in ``scale``."""
        return replace(self, column_scale=scale if self.column_scale is None else self.column_scale * scale)

    def blocks(self, gguf: GgufFile, block_bytes: int) -> Iterator[Float32]:
        """The weights in order as fresh float32 arrays of whole rows, about ``block_bytes`` each."""
        return (read() for read in self.readings(gguf, block_bytes))

    def readings(self, gguf: GgufFile, block_bytes: int) -> Iterator[Callable[[], Float32]]:
        """What reads each of the ``blocks``, in order; they do not depend on each other."""
        columns = self.shape[1] if self.is_matrix else 1
        step = max(1, block_bytes // (4 * columns)) if self.is_matrix else self.shape[0]
        row = 0
        for part in self.parts:
            for start in range(part.start, part.stop, step):
                stop = min(part.stop, start + step)
                yield partial(self._block, gguf, part.tensor, start, stop, row)
                row += stop - start

    def _block(self, gguf: GgufFile, tensor: str | None, start: int, stop: int, row: int) -> Float32:
        """Rows ``start`` to ``stop`` of a tensor, which are those from ``row`` of this weight."""
        block = self._rows(gguf, tensor, start, stop)
        self._scale(block, row)
        return block

    def row(self, gguf: GgufFile, index: int) -> Float32:
        """One row of a matrix."""
        first = 0
        for part in self.parts:
            start = part.start + index - first
            if start < part.stop:
                block = self._rows(gguf, part.tensor, start, start + 1)
                self._scale(block, index)
                return block[0]
            first += part.stop - part.start
        raise IndexError(index)

    def _scale(self, block: Float32, row: int) -> None:
        """Scale in place a block that begins with the row ``row`` of this weight."""
        if self.factor != 1.0:
            block *= np.float32(self.factor)
        if self.column_scale is not None:
            block *= self.column_scale
        if self.row_scale is not None:
            scale = self.row_scale[row : row + len(block)]
            block *= scale[:, None] if self.is_matrix else scale

    def _rows(self, gguf: GgufFile, tensor: str | None, start: int, stop: int) -> Float32:
        if tensor is None:
            return np.zeros((stop - start, *self.shape[1:]), np.float32)
        if self.is_matrix:
            return gguf.tensor_float32(tensor, start, stop)
        return gguf.tensor_float32(tensor)[start:stop]


class TensorTable:
    """Hands out references to a file's tensors, checks their shapes and remembers which were used."""

    def __init__(self, gguf: GgufFile) -> None:
        self.gguf = gguf
        self.uses: Counter[str] = Counter()

    def has(self, name: str) -> bool:
        return name in self.gguf.tensors

    def rows(self, name: str) -> int:
        return self._shape(name)[0]

    def matrix(self, name: str, rows: int, columns: int, factor: float = 1.0) -> Weight:
        """A whole matrix, which must have exactly this shape."""
        if self._shape(name) != (rows, columns):
            raise self._wrong(name, f"{rows} x {columns}")
        return self.stacked([(name, 0, rows)], columns, factor)

    def stacked(self, pieces: list[tuple[str, int, int]], columns: int, factor: float = 1.0) -> Weight:
        """Rows ``start`` to ``stop`` of each named matrix below each other."""
        for name, _, stop in pieces:
            if len(self._shape(name)) != 2 or self._shape(name)[1] != columns or self.rows(name) < stop:
                raise self._wrong(name, f"{stop} x {columns}")
        parts = tuple(self._use(*piece) for piece in pieces)
        return Weight(parts, (sum(part.stop - part.start for part in parts), columns), factor)

    def joined(self, pieces: list[tuple[str, int]], factor: float = 1.0) -> Weight:
        """Vectors of these lengths after each other; one that the file does not have counts as zeros."""
        parts = []
        for name, length in pieces:
            if self.has(name) and self._shape(name) != (length,):
                raise self._wrong(name, str(length))
            parts.append(self._use(name, 0, length) if self.has(name) else Part(None, 0, length))
        return Weight(tuple(parts), (sum(length for _, length in pieces),), factor)

    def vector(self, name: str, length: int) -> Weight:
        """A vector that the file must have."""
        self._shape(name)
        return self.joined([(name, length)])

    def refuse_unused(self) -> None:
        """ModelIncompatible when the file has a tensor that nothing asked for: it would be ignored."""
        unused = sorted(set(self.gguf.tensors) - set(self.uses))
        if unused:
            more = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
            reason = f"this architecture has no such tensor{more}"
            raise Metadata(self.gguf).refusal_of_tensor(unused[0], reason)

    def _use(self, name: str, start: int, stop: int) -> Part:
        self.uses[name] += 1
        return Part(name, start, stop)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.gguf.tensors:
            raise Metadata(self.gguf).refusal_of_tensor(name, "the file does not have it")
        return self.gguf.tensors[name].shape

    def _wrong(self, name: str, expected: str) -> ModelIncompatible:
        found = " x ".join(map(str, self._shape(name)))
        return Metadata(self.gguf).refusal_of_tensor(name, f"its shape is {found}, expected is {expected}")
