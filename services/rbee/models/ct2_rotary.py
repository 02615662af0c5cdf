"""Write one layer's rotary embeddings and attention scale into the engine's specification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rbee.models.rope_scaling import Rope

_ATTRIBUTES_OF_A_ROTATION = ("rotary_dim", "rotary_interleave", "rotary_base")


def set_attention_scale(attention: Any, scale: float, head_dim: int, rope: Rope | None) -> None:
    """Set what queries times keys are multiplied by, where it is not the engine's default."""
    if rope is not None and rope.magnitude_contexts is None:
        # Queries and keys both carry the magnitude, so that their product carries its square.
        scale *= rope.magnitude**2
    if not math.isclose(scale, 1 / math.sqrt(head_dim), rel_tol=1e-7):
        attention.queries_scale = np.float32(scale)


def set_rope(attention: Any, rope: Rope | None, head_dim: int, *, interleaved: bool) -> None:
    """Set the rotary attributes of one attention layer, or remove them when it has no rotation."""
    if rope is None:
        for name in _ATTRIBUTES_OF_A_ROTATION:
            delattr(attention, name)
        return
    attention.rotary_dim = np.int32(0 if rope.dimensions == head_dim else rope.dimensions)
    attention.rotary_interleave = interleaved
    attention.rotary_base = np.float32(rope.base)
    # The specification declares these attributes only for the scaling types its own converters know, and
    # not all that the engine reads (the factor of the Llama 3 type), so that they are added by name.
    vars(attention).update(_scaling(rope))


def _scaling(rope: Rope) -> dict[str, object]:
    from ctranslate2.specs.attention_spec import RotaryScalingType

    if rope.llama3 is not None:
        return {
            "rotary_scaling_type": np.int8(RotaryScalingType.Llama3),
            "rotary_scaling_factor": np.float32(rope.llama3.factor),
            "rotary_low_freq_factor": np.float32(rope.llama3.low_frequency_factor),
            "rotary_high_freq_factor": np.float32(rope.llama3.high_frequency_factor),
            "original_max_position_embeddings": np.int32(rope.llama3.original_context),
        }
    found: dict[str, object] = {}
    if rope.divisors is not None:
        # The "Su" type takes any divisor per frequency; with both its tables equal it never switches.
        divisors = rope.divisors * np.float32(rope.linear_factor)
        found["rotary_scaling_type"] = np.int8(RotaryScalingType.Su)
        found["rotary_scaling_long_factor"] = divisors
        found["rotary_scaling_short_factor"] = divisors
    elif rope.linear_factor != 1.0:
        found["rotary_scaling_type"] = np.int8(RotaryScalingType.Linear)
        found["rotary_scaling_factor"] = np.float32(rope.linear_factor)
    if rope.magnitude_contexts is not None:
        original, maximum = rope.magnitude_contexts
        found["original_max_position_embeddings"] = np.int32(original)
        found["max_position_embeddings"] = np.int32(maximum)
    return found
