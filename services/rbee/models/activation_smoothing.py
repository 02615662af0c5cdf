"""Smooth activations into the weights, so that int8 arithmetic keeps what float32 would compute.

The engine's int8 arithmetic rounds the activations of each token to 127 steps of the largest one. A few
channels are 10 to 100 times larger than the others and leave them no steps. SmoothQuant (Xiao et al. 2023,
arXiv 2211.10438) divides such channels where they are produced and multiplies the columns that read them,
which changes no result but the rounding. Here the factors of a site are x^alpha / w^beta, with x a channel's
root mean square over the calibration tokens (each relative to its own) and w the largest weight of its
columns; the exponents are those of a grid with the least expected error of the site's output.

The matrices that read smoothed activations use fewer than the 127 steps: where a processor has no
instructions for int8 dot products (x86 before VNNI), the engine adds two products in 16 bits with saturation,
and an activation at its limit beside two large weights passes that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rbee.models.conversion_lock import OnProgress
from rbee.models.ct2_layout import Layout
from rbee.models.decoder_pass import DecoderPass, Observation
from rbee.models.gguf_file import Float32, GgufFile
from rbee.models.numpy_threads import Each, numpy_threads
from rbee.models.smoothing_sites import Site, scaled

EXPONENTS = tuple((alpha, beta) for alpha in (0.3, 0.45, 0.6, 0.75, 0.9) for beta in (0.0, 0.2, 0.4))
INT8_LIMIT = 112
_ACTIVATION_LIMIT = 127
_SAMPLED_TOKENS = 128
_SAMPLED_ROWS = 512
# Factors are rounded to eighths of a power of two: sums that another processor rounds differently by a bit
# give the same factors, and so the same file.
_FACTOR_STEPS = 8
_SMALLEST = 1e-5


@dataclass
class Smoothing:
    """The smoothed layout, and the exponents (alpha, beta) that each kind of site got, layer by layer."""

    layout: Layout
    exponents: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """What the description of a converted folder says of it."""
        return {"method": "smoothquant", "int8_limit": INT8_LIMIT, "exponents": self.exponents}


def smooth(
    gguf: GgufFile, layout: Layout, texts: Sequence[Sequence[int]], on_progress: OnProgress
) -> Smoothing:
    """Calibrate on ``texts`` (token ids) and fold the factors of every site into the layout.

    ``on_progress`` gets (layers done, layers in all), ``(0, n)`` first. A site whose activations or weights
    are not finite is left as it is.
    """
    result = Smoothing(layout)

    def observe(seen: Observation, each: Each) -> None:
        chosen = choose_factors(seen, each)
        if chosen is not None:
            result.exponents.setdefault(seen.site.kind.value, []).append(chosen[0])
            result.layout = scaled(result.layout, seen.site, chosen[1], INT8_LIMIT)

    total = layout.settings.layers
    on_progress(0, total)
    with numpy_threads() as each:
        calibration = DecoderPass(gguf, layout, texts, lambda seen: observe(seen, each), each)
        for layer in calibration.layers():
            # The last layer is done when the projection is.
            if layer + 1 < total:
                on_progress(layer + 1, total)
        calibration.finish()
    on_progress(total, total)
    return result


def choose_factors(seen: Observation, each: Each = map) -> tuple[tuple[float, float], Float32] | None:
    """The best exponents of a site with its factors; None where there is nothing finite to choose by."""
    weights = _Weights.of(seen.weights, seen.site, seen.activations.shape[1])
    sizes = np.sqrt(np.mean(np.square(seen.activations), axis=1, keepdims=True))
    relative = seen.activations / np.maximum(sizes, _SMALLEST)
    channels = seen.site.to_channels(np.sqrt(np.mean(np.square(relative), axis=0)))
    columns = seen.site.to_channels(weights.largest)
    if not (np.isfinite(channels).all() and np.isfinite(columns).all()):
        return None
    sample = slice(None, None, -(-len(sizes) // _SAMPLED_TOKENS))
    activations = seen.activations[sample]
    if seen.residual is None:
        power = np.square(activations) @ weights.squares
    else:
        # What is added to a residual matters as much as it changes that.
        power = np.square(seen.residual[sample]).sum(axis=1)

    def tried(exponents: tuple[float, float]) -> tuple[float, tuple[float, float], Float32]:
        factors = _factors(channels, columns, *exponents)
        expected = weights.expected_error(activations, power, seen.site.to_columns(factors))
        return expected, exponents, factors

    _, exponents, factors = min(each(tried, EXPONENTS), key=lambda entry: entry[0])
    return exponents, factors


def _factors(channels: Float32, columns: Float32, alpha: float, beta: float) -> Float32:
    """Factors of geometric mean near 1."""
    logs = alpha * np.log2(np.maximum(channels, _SMALLEST)) - beta * np.log2(np.maximum(columns, _SMALLEST))
    steps = np.rint((logs - logs.mean()) * _FACTOR_STEPS) / _FACTOR_STEPS
    return np.exp2(steps).astype(np.float32)


@dataclass(frozen=True)
class _Weights:
    """What the choice needs to know of a site's matrices: per column the largest magnitude and the sum of
    squares over all rows, and some of the rows."""

    largest: Float32
    squares: Float32
    rows: Float32
    # How many rows each of them stands for.
    share: float

    @classmethod
    def of(cls, matrices: Iterable[Float32], site: Site, columns: int) -> _Weights:
        largest, squares = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
        step, sampled, count = max(1, site.rows // _SAMPLED_ROWS), [], 0
        for block in matrices:
            np.maximum(largest, np.maximum(block.max(axis=0), -block.min(axis=0)), out=largest)
            squares += np.einsum("rc,rc->c", block, block)
            sampled.append(block[-count % step :: step].copy())
            count += len(block)
        rows = np.concatenate(sampled)
        return cls(largest, squares, rows, count / len(rows))

    def expected_error(self, activations: Float32, power: Float32, factors: Float32) -> float:
        """The expected squared error of the outputs, relative to ``power`` of each token, over the tokens.

        Rounding to steps of size d has the variance d^2 / 12. The steps of a token are those of its largest
        activation, those of a row those of its largest weight; both errors reach the output through the other
        operand.
        """
        power = np.maximum(power, 1e-20)
        steps = np.abs(activations / factors).max(axis=1) / _ACTIVATION_LIMIT
        of_activations = np.mean(np.square(steps) / power) * (np.square(factors) @ self.squares)
        steps = np.abs(self.rows * factors).max(axis=1) / INT8_LIMIT
        seen = np.mean(np.square(activations) / power[:, None], axis=0)
        of_weights = np.square(steps).sum() * self.share * (seen / np.square(factors)).sum()
        return float(of_activations + of_weights) / 12
