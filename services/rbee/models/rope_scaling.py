"""Resolve the rotary-embedding metadata of a GGUF into frequencies and a magnitude, or refuse it.

Every scaling in use is, for a fixed context, a divisor per frequency and one factor on sine and cosine:
linear (Chen et al. 2023, arXiv 2306.15595), YaRN (Peng et al. 2023, arXiv 2309.00071), LongRoPE (Ding et al.
2024, arXiv 2402.13753) and the frequency table that Llama 3 files carry as the tensor ``rope_freqs``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rbee.models.gguf_file import Float32, GgufFile
from rbee.models.model_metadata import Metadata

ROPE_KEYS = frozenset(
    {
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
FREQUENCY_TENSOR = "rope_freqs.weight"
SHORT_TENSOR, LONG_TENSOR = "rope_factors_short.weight", "rope_factors_long.weight"


@dataclass(frozen=True)
class Llama3Scaling:
    """The parameters from which Llama 3 computes its frequency table."""

    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192

    def divisors(self, base: float, dimensions: int) -> npt.NDArray[np.float64]:
        """The divisor of every frequency, as published with Llama 3.1."""
        wavelength = 2 * math.pi * base ** (np.arange(0, dimensions, 2) / dimensions)
        low = self.original_context / self.low_frequency_factor
        high = self.original_context / self.high_frequency_factor
        share = (self.original_context / wavelength - self.low_frequency_factor) / (
            self.high_frequency_factor - self.low_frequency_factor
        )
        smooth = 1 / ((1 - share) / self.factor + share)
        return np.where(wavelength < high, 1.0, np.where(wavelength > low, self.factor, smooth))


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings of one kind of layer.

    At position p the i-th pair turns by ``p / (linear_factor * divisors[i] * base ** (2i / dimensions))``;
    sine and cosine are multiplied by ``magnitude``. ``llama3`` is set when it yields ``divisors``.
    """

    base: float
    dimensions: int
    linear_factor: float = 1.0
    divisors: Float32 | None = None
    llama3: Llama3Scaling | None = None
    magnitude: float = 1.0
    # Where only part of a head is rotated, the magnitude in the form the engine takes it: two contexts
    # (original, maximum) with magnitude = sqrt(1 + ln(maximum / original) / ln(original)).
    magnitude_contexts: tuple[int, int] | None = None
    # The scaling is only exact up to this many positions.
    context_limit: int | None = None
    # The tensors that went into it.
    tensors: tuple[str, ...] = ()


def resolve_rope(gguf: GgufFile, metadata: Metadata, head_dim: int, context_length: int) -> Rope:
    """Read all rope metadata and tensors; ModelIncompatible names what cannot be reproduced."""
    base = metadata.number("rope.freq_base", 10_000.0)
    dimensions = metadata.integer("rope.dimension_count", head_dim)
    if not 0 < dimensions <= head_dim or dimensions % 2:
        raise metadata.refusal("rope.dimension_count", f"an even number up to {head_dim} is needed")
    if base <= 0:
        raise metadata.refusal("rope.freq_base", "a positive number is needed")
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 0.0)) or 1.0
    if factor <= 0:
        raise metadata.refusal("rope.scaling.factor", "a positive number is needed")
    original = metadata.integer("rope.scaling.original_context_length", context_length)
    magnitude = metadata.number("rope.scaling.attn_factor", 1.0)
    kind = metadata.text("rope.scaling.type", "linear")
    table = _factors(gguf, FREQUENCY_TENSOR, dimensions)
    llama3 = _as_llama3(table, base, dimensions)
    used = (FREQUENCY_TENSOR,) if table is not None else ()
    rope = Rope(base, dimensions, divisors=table, llama3=llama3, magnitude=magnitude, tensors=used)
    match kind:
        case "none":
            pass
        case "linear":
            rope = replace(rope, linear_factor=factor, llama3=llama3 if factor == 1.0 else None)
        case "yarn":
            rope = _yarn(rope, metadata, factor, original)
        case "longrope":
            rope = _longrope(rope, gguf, metadata, factor, original)
        case _:
            raise metadata.refusal("rope.scaling.type", "supported are none, linear, yarn and longrope")
    if rope.magnitude != 1.0 and dimensions != head_dim:
        return replace(rope, magnitude_contexts=_as_contexts(metadata, rope, original))
    return rope


def _yarn(rope: Rope, metadata: Metadata, factor: float, original: int) -> Rope:
    if factor == 1.0:
        return rope
    beta_fast = metadata.number("rope.scaling.yarn_beta_fast", 32.0)
    beta_slow = metadata.number("rope.scaling.yarn_beta_slow", 1.0)

    def dimension_turning(rotations: float) -> float:
        """The pair that makes this many full turns within the original context."""
        return rope.dimensions * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(0.0, math.floor(dimension_turning(beta_fast)))
    high = min(rope.dimensions - 1.0, math.ceil(dimension_turning(beta_slow)))
    pairs = np.arange(rope.dimensions // 2)
    interpolated = np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    divisors = 1.0 / (interpolated / factor + (1.0 - interpolated))
    if rope.divisors is not None:
        divisors = divisors * rope.divisors
    return replace(
        rope,
        divisors=divisors.astype(np.float32),
        llama3=None,
        magnitude=rope.magnitude * (1.0 + 0.1 * math.log(factor)),
    )


def _longrope(rope: Rope, gguf: GgufFile, metadata: Metadata, factor: float, original: int) -> Rope:
    """LongRoPE has one table up to the original context and another beyond it.

    Changing the table within a sequence would leave keys of both kinds in the cache, so the context ends
    where the short table does.
    """
    if factor != 1.0:
        raise metadata.refusal("rope.scaling.factor", "it has no meaning together with longrope")
    short = _factors(gguf, SHORT_TENSOR, rope.dimensions)
    if short is None or rope.divisors is not None:
        needed = f"it needs the tensor {SHORT_TENSOR} and no {FREQUENCY_TENSOR}"
        raise metadata.refusal("rope.scaling.type", needed)
    return replace(
        rope, divisors=short, llama3=None, context_limit=original, tensors=(SHORT_TENSOR, LONG_TENSOR)
    )


def _as_contexts(metadata: Metadata, rope: Rope, original: int) -> tuple[int, int]:
    ratio = round(original ** (rope.magnitude**2 - 1)) if original > 1 and 1 <= rope.magnitude < 2 else 0
    if ratio < 2 or ratio * original >= 2**31 or rope.llama3 is not None:
        raise metadata.refusal("rope.scaling.attn_factor", "it cannot be applied to a part of each head")
    reached = math.sqrt(1 + math.log(ratio) / math.log(original))
    if not math.isclose(reached, rope.magnitude, rel_tol=1e-5):
        raise metadata.refusal("rope.scaling.attn_factor", "it cannot be applied to a part of each head")
    return original, ratio * original


def _factors(gguf: GgufFile, name: str, dimensions: int) -> Float32 | None:
    if name not in gguf.tensors:
        return None
    factors = gguf.tensor_float32(name).reshape(-1)
    if factors.size != dimensions // 2 or not (np.isfinite(factors) & (factors > 0)).all():
        raise Metadata(gguf).refusal_of_tensor(name, f"{dimensions // 2} positive numbers are needed")
    return factors


def _as_llama3(table: Float32 | None, base: float, dimensions: int) -> Llama3Scaling | None:
    """Recognise the published Llama 3 parameters in a frequency table.

    The engine has them as scalars, which stay float32 when its compute type is float16; a table of ours
    would be rounded.
    """
    if table is None or table.max() <= 1.0:
        return None
    candidate = Llama3Scaling(factor=float(round(float(table.max()), 3)))
    same = np.allclose(candidate.divisors(base, dimensions), table, rtol=1e-4)
    return candidate if same else None
