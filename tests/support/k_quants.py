"""Q4_K and Q5_K encoders: the gguf library reads these types but does not write them.

A block holds 256 weights in 8 groups of 32; a weight is ``d * scale * q - dmin * offset`` with 6-bit scale
and offset per group and 4 or 5 bits of q per weight (ggml-quants.c of the ggml repository has the layout).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

BLOCK, GROUP = 256, 32
_BITS = {GGMLQuantizationType.Q4_K: 4, GGMLQuantizationType.Q5_K: 5}
K_QUANTS = frozenset(_BITS)

Bytes = npt.NDArray[np.uint8]


def quantize_k(weights: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> Bytes:
    """The blocks of a matrix whose rows are multiples of 256 long, row by row."""
    rows = len(weights)
    levels = (1 << _BITS[kind]) - 1
    groups = weights.reshape(-1, BLOCK // GROUP, GROUP)
    lowest = np.maximum(0, -groups.min(axis=2))
    steps = (groups.max(axis=2) + lowest) / levels
    d, dmin = (np.maximum(v.max(axis=1) / 63, 1e-7).astype(np.float16) for v in (steps, lowest))
    scale, offset = (
        np.clip(np.rint(v / unit[:, None].astype(np.float32)), 0, 63).astype(np.uint8)
        for v, unit in ((steps, d), (lowest, dmin))
    )
    width = np.maximum(d[:, None].astype(np.float32) * scale, 1e-9)
    shift = dmin[:, None].astype(np.float32) * offset
    q = np.clip(np.rint((groups + shift[:, :, None]) / width[:, :, None]), 0, levels).astype(np.uint8)
    halves = [d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), _packed(scale, offset)]
    low = q & 15
    low_bits = (low[:, 0::2] | low[:, 1::2] << 4).reshape(len(q), -1)
    high_bits = [_fifth_bits(q)] if _BITS[kind] == 5 else []
    return np.concatenate([*halves, *high_bits, low_bits], axis=1).reshape(rows, -1)


def _packed(scale: Bytes, offset: Bytes) -> Bytes:
    """Eight pairs of 6-bit numbers in 12 bytes."""
    first = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    second = offset[:, :4] | (offset[:, 4:] >> 4) << 6
    third = scale[:, 4:] & 15 | (offset[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def _fifth_bits(q: Bytes) -> Bytes:
    """Bit g of byte i is the fifth bit of weight i of group g."""
    shifts = np.arange(BLOCK // GROUP, dtype=np.uint8)[None, :, None]
    return np.bitwise_or.reduce((q >> 4) << shifts, axis=1)
