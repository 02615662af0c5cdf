"""Write the engine's ``model.bin`` weight by weight, so that memory holds a few blocks and never a model.

The binary format (version 6) is the one that ``ctranslate2.specs.model_spec`` writes: a header, the variables
sorted by name, then the aliases; all integers in native (little-endian) order. Every size is known from the
shapes, so that each weight has its place before any is read and several threads can fill the file.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rbee.core.errors import ModelIncompatible
from rbee.models.compute_types import ComputeType, StoredType
from rbee.models.ct2_layout import Layout
from rbee.models.gguf_file import GgufFile
from rbee.models.quantisation import (
    NotRepresentable,
    cast,
    int16_scale,
    largest,
    quantise_int8,
    quantise_int16,
)
from rbee.models.weights import Weight

BINARY_VERSION = 6
# Large enough for numpy to work in long loops, small enough for a block and its copies to stay in cache.
BLOCK_BYTES = 4 * 2**20
_LARGEST_VARIABLE = 2**32 - 1
# The interpreter lock leaves about 1.6 times the speed to two threads, and little more to many.
_THREADS = min(4, os.cpu_count() or 1)
_PREALLOCATE = getattr(os, "posix_fallocate", None)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Slot:
    """The place of one variable's bytes in the file."""

    name: str
    type: StoredType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return self.type.itemsize * int(np.prod(self.shape, dtype=np.int64))


def write_model(
    path: Path, gguf: GgufFile, layout: Layout, compute_type: ComputeType, on_progress: OnProgress
) -> None:
    """Write and sync ``model.bin``; progress counts the GGUF's tensors, ``(0, n)`` first and ``(n, n)`` last.

    Raises ModelIncompatible for weights that cannot be stored in this compute type, and OSError.
    """
    header, slots = _plan(layout, compute_type)
    with path.open("wb+") as file:
        descriptor = file.fileno()
        end = max((slot.offset + slot.nbytes for slot in slots.values()), default=len(header))
        _reserve(descriptor, end)
        for offset, piece in header:
            _write_at(descriptor, piece, offset)
        _write_at(descriptor, _alias_table(layout.aliases), end)
        filler = _Filler(descriptor, gguf, slots, compute_type)
        _fill_all(filler, layout, on_progress)
        os.fsync(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Let a full disk show now and not after minutes of work, where the file system can tell."""
    if _PREALLOCATE is None:
        return
    try:
        _PREALLOCATE(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _plan(layout: Layout, compute_type: ComputeType) -> tuple[list[tuple[int, bytes]], dict[str, _Slot]]:
    """The headers with their offsets, and the slots between them, in the order of the names."""
    types: dict[str, tuple[StoredType, tuple[int, ...]]] = {}
    for name, value in layout.variables.items():
        if not isinstance(value, Weight):
            types[name] = (StoredType(value.dtype.name), value.shape)
        elif value.is_matrix:
            types[name] = (compute_type.matrix_type, value.shape)
            if compute_type.matrix_type is StoredType.INT8:
                types[f"{name}_scale"] = (StoredType.FLOAT32, value.shape[:1])
            elif compute_type.matrix_type is StoredType.INT16:
                types[f"{name}_scale"] = (StoredType.FLOAT32, ())
        else:
            types[name] = (compute_type.other_type, value.shape)
    start = b"".join(
        (
            struct.pack("<I", BINARY_VERSION),
            _text(layout.spec_name),
            struct.pack("<II", layout.spec_revision, len(types)),
        )
    )
    pieces, slots, position = [(0, start)], {}, len(start)
    for name in sorted(types):
        stored, shape = types[name]
        slot = _Slot(name, stored, shape, 0)
        if slot.nbytes > _LARGEST_VARIABLE:
            raise ModelIncompatible(
                f"{name} needs {slot.nbytes} bytes as {stored}; the engine's format ends at 4 GB a matrix",
                details={"tensor": name, "compute_type": compute_type.value},
                suggestion="Set worker.compute_type to int8",
            )
        dimensions = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        head = _text(name) + dimensions + struct.pack("<BI", stored.type_id, slot.nbytes)
        pieces.append((position, head))
        slots[name] = _Slot(name, stored, shape, position + len(head))
        position += len(head) + slot.nbytes
    return pieces, slots


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<H", len(encoded) + 1) + encoded + b"\0"


def _alias_table(aliases: dict[str, str]) -> bytes:
    rows = [_text(alias) + _text(name) for alias, name in sorted(aliases.items())]
    return struct.pack("<I", len(rows)) + b"".join(rows)


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _fill_all(filler: _Filler, layout: Layout, on_progress: OnProgress) -> None:
    """Fill every variable, several at a time: numpy releases the interpreter lock in its long loops."""
    weights: dict[str, Weight] = {}
    for name, value in layout.variables.items():
        if isinstance(value, Weight):
            weights[name] = value
        else:
            filler.put(value, filler.slots[name].offset)
    left = Counter({name: layout.uses[name] for name in filler.gguf.tensors})
    done, total = sum(1 for uses in left.values() if uses == 0), len(left)
    on_progress(0, total)
    # The largest first, so that no thread is left alone with the embeddings at the end.
    order = sorted(weights, key=lambda name: -filler.slots[name].nbytes)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="convert") as pool:
        filling = {pool.submit(filler.fill, name, weights[name]): weights[name] for name in order}
        try:
            for future in as_completed(filling):
                future.result()
                for part in filling[future].parts:
                    if part.tensor is not None:
                        left[part.tensor] -= 1
                        done += left[part.tensor] == 0
                on_progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Filler:
    """Writes one variable's bytes into its slot (and its scale's)."""

    descriptor: int
    gguf: GgufFile
    slots: dict[str, _Slot]
    compute_type: ComputeType

    def fill(self, name: str, value: Weight) -> None:
        slot = self.slots[name]
        try:
            if slot.type is StoredType.INT8:
                self._fill_int8(slot, value)
            elif slot.type is StoredType.INT16:
                self._fill_int16(slot, value)
            else:
                self._fill_float(slot, value)
        except NotRepresentable as error:
            raise self._refusal(value, error) from None

    def _fill_int8(self, slot: _Slot, weight: Weight) -> None:
        offset, scale_offset = slot.offset, self.slots[f"{slot.name}_scale"].offset
        for block in weight.blocks(self.gguf, BLOCK_BYTES):
            quantised, scale = quantise_int8(block, weight.int8_limit)
            self.put(quantised, offset)
            self.put(scale, scale_offset)
            offset += quantised.nbytes
            scale_offset += scale.nbytes

    def _fill_int16(self, slot: _Slot, weight: Weight) -> None:
        # The scale depends on the whole matrix, so that the matrix is read twice rather than held.
        amax = max(float(largest(block)) for block in weight.blocks(self.gguf, BLOCK_BYTES))
        scale, offset = int16_scale(amax), slot.offset
        self.put(np.asarray(scale), self.slots[f"{slot.name}_scale"].offset)
        for block in weight.blocks(self.gguf, BLOCK_BYTES):
            quantised = quantise_int16(block, scale)
            self.put(quantised, offset)
            offset += quantised.nbytes

    def _fill_float(self, slot: _Slot, weight: Weight) -> None:
        offset = slot.offset
        for block in weight.blocks(self.gguf, BLOCK_BYTES):
            stored = cast(block, slot.type)
            self.put(stored, offset)
            offset += stored.nbytes

    def put(self, array: npt.NDArray[np.generic], offset: int) -> None:
        _write_at(self.descriptor, np.ascontiguousarray(array).tobytes(), offset)

    def _refusal(self, weight: Weight, error: NotRepresentable) -> ModelIncompatible:
        names = sorted({part.tensor for part in weight.parts if part.tensor is not None})
        return ModelIncompatible(
            f"The model's tensor {names[0]} cannot be stored as {self.compute_type.value}: {error}",
            details={"tensor": names[0], "compute_type": self.compute_type.value},
            suggestion="Fetch the file again, or set worker.compute_type to float32",
        )
