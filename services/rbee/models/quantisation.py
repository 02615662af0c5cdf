"""Turn float32 weights into the element types of the engine's model file, as its own converter does.

All functions work on blocks of rows. int8 is symmetric with a scale per row (127 / max|row|), int16 with one
per matrix (1024 / max|matrix|), as the quantization page of CTranslate2's documentation describes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rbee.models.compute_types import StoredType
from rbee.models.gguf_file import Float32

_SMALLEST_AMAX = np.float32(127) / np.finfo(np.float32).max


class NotRepresentable(ValueError):
    """A weight is NaN or infinite, or too large for the target type."""


def quantise_int8(block: Float32, limit: int = 127) -> tuple[npt.NDArray[np.int8], Float32]:
    """Quantise the rows of a block in place; returns the weights, up to ``limit``, and one float32 scale per
    row."""
    amax = largest(block, axis=1)
    amax[amax == 0] = limit
    scale = (np.float32(limit) / np.maximum(amax, _SMALLEST_AMAX)).astype(np.float32)
    block *= scale[:, None]
    np.rint(block, out=block)
    return block.astype(np.int8), scale


def int16_scale(amax: float) -> np.float32:
    """The scale of a whole matrix from its largest magnitude: ten bits, so that products have twenty."""
    return np.float32(2**10 / np.float32(amax)) if amax else np.float32(1)


def quantise_int16(block: Float32, scale: np.float32) -> npt.NDArray[np.int16]:
    """Quantise a block of a matrix in place with the matrix's scale."""
    block *= scale
    np.rint(block, out=block)
    limits = np.iinfo(np.int16)
    return np.clip(block, limits.min, limits.max, out=block).astype(np.int16)


def largest(block: Float32, axis: int | None = None) -> Float32:
    """The largest magnitude (per row with ``axis=1``); NotRepresentable for NaN and infinities."""
    amax: Float32 = np.maximum(block.max(axis=axis), -block.min(axis=axis))
    if not np.isfinite(amax).all():
        raise NotRepresentable("it contains values that are not finite numbers")
    return amax


def cast(block: Float32, target: StoredType) -> npt.NDArray[np.generic]:
    """Store a block in a floating-point type; bfloat16 comes back as its bits in uint16."""
    if block.size:
        largest(block)
    match target:
        case StoredType.FLOAT32:
            return block
        case StoredType.FLOAT16:
            with np.errstate(over="ignore"):
                half = block.astype(np.float16)
            if not np.isfinite(half).all():
                raise NotRepresentable("it contains values beyond the range of float16")
            return half
        case StoredType.BFLOAT16:
            bits = block.view(np.uint32)
            # Round to nearest, ties to even: add just under half of the last kept bit, plus that bit.
            rounded: npt.NDArray[np.generic] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            return rounded
        case _:
            raise NotRepresentable(f"{target} needs a scale")
