"""What to change so that a model fits that does not: found by calculating, never a fixed phrase."""

from __future__ import annotations

from dataclasses import replace

from rbee.models.memory_fit import CUDA, MIB, ModelShape, Room, Terms, calculate_fit, compare, is_enough

SHORTEST_CONTEXT = 128
"""Nobody is advised to run a model with less."""

_STEP = 64


def advise(shape: ModelShape, terms: Terms, room: Room) -> str:
    """One sentence for a model that does not fit on these terms.

    In the order of what it costs the user: another compute type, fewer slots, a shorter context, two of
    these; else how small a model would have to be, or how much memory is missing for any.
    """
    smallest = replace(terms, compute_type=_smallest_type(shape, terms))
    if is_enough(calculate_fit(shape, smallest), room):
        return f"It fits with {_changes(terms, smallest)}{_needs(shape, smallest, room)}"
    for tried in dict.fromkeys((terms, smallest)):
        for slots in (terms.slots, 1):
            found = _with_longest_context(shape, replace(tried, slots=slots), room)
            if found is not None:
                return f"It fits with {_changes(terms, found)}{_needs(shape, found, room)}"
    return _smaller_model(shape, replace(smallest, slots=1, context_tokens=SHORTEST_CONTEXT), room)


def _smallest_type(shape: ModelShape, terms: Terms) -> str:
    candidate = "int8_float16" if terms.backend == CUDA else "int8"
    weights = shape.weights_bytes
    # Of equal weights: its cache is smaller on CUDA.
    is_no_larger = candidate in weights and weights[candidate] <= weights[terms.compute_type]
    return candidate if is_no_larger else terms.compute_type


def _with_longest_context(shape: ModelShape, terms: Terms, room: Room) -> Terms | None:
    """The terms with the longest context that fits, in steps of 64 tokens; None when not even a short one."""
    present = min(terms.context_tokens, shape.context_length)
    if is_enough(calculate_fit(shape, terms), room):
        return terms
    low, high = 0, present // _STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = is_enough(calculate_fit(shape, replace(terms, context_tokens=middle * _STEP)), room)
        low, high = (middle, high) if fits else (low, middle)
    return replace(terms, context_tokens=low * _STEP) if low * _STEP >= SHORTEST_CONTEXT else None


def _changes(before: Terms, after: Terms) -> str:
    changes = []
    if after.compute_type != before.compute_type:
        changes.append(f'worker.compute_type = "{after.compute_type}"')
    if after.slots != before.slots:
        changes.append(f"worker.max_parallel_requests = {after.slots}")
    if after.context_tokens != before.context_tokens:
        changes.append(f"worker.context_tokens = {after.context_tokens}")
    return " and ".join(changes)


def _needs(shape: ModelShape, terms: Terms, room: Room) -> str:
    amounts = compare(calculate_fit(shape, terms), room)
    return " (" + ", ".join(f"{each.resource.upper()} {each.required_mb} MB" for each in amounts) + ")"


def _smaller_model(shape: ModelShape, terms: Terms, room: Room) -> str:
    weights = shape.weights_bytes[terms.compute_type]
    left = min(
        each.available_mb * MIB - (each.required_mb * MIB - weights)
        for each in compare(calculate_fit(shape, terms), room)
    )
    parameters = shape.weights_bytes["float32"] / 4 * left / weights if weights else 0
    tightest = f"{terms.compute_type} and a context of {terms.context_tokens} tokens"
    if parameters < 1e6:
        missing = max(
            each.required_mb - each.available_mb for each in compare(calculate_fit(shape, terms), room)
        )
        return f"Free {missing} MB: it does not fit even with {tightest}"
    return (
        f"Choose a model of at most {parameters / 1e6:.0f} million parameters: "
        f"this one does not fit even with {tightest}"
    )
