"""How many requests a worker should serve at once: a pure calculation from device, cores and free memory."""

from __future__ import annotations

from dataclasses import replace

from rbee.models.memory_fit import CUDA, ModelShape, Room, Terms, calculate_fit, is_enough

SLOTS_PER_CORE = 8
"""On a CPU more streams at once make no more tokens per second, and each of them fewer.

Tokens per second of 1, 4, 8, 16 and 32 streams on two cores (embedded model, int8): 35, 65, 78, 83, 114.
"""
MOST_SLOTS = 32
_SHARE = 2
"""Several slots may take half of what is free: the rest is for other models."""


def choose_slots(shape: ModelShape, terms: Terms, room: Room, cores: int) -> int:
    """The largest power of two that the device serves well and for which there is memory; at least 1.

    Args:
        terms: with any number of slots.
        cores: processor cores that the worker may use.
    """
    slots = MOST_SLOTS if terms.backend == CUDA else min(MOST_SLOTS, SLOTS_PER_CORE * cores)
    slots = 1 << (slots.bit_length() - 1)
    share = replace(
        room,
        ram_mb=room.ram_mb // _SHARE,
        vram_mb=None if room.vram_mb is None else room.vram_mb // _SHARE,
    )
    while slots > 1 and not is_enough(calculate_fit(shape, replace(terms, slots=slots)), share):
        slots //= 2
    return slots
