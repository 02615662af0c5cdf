"""How much memory a worker of a model takes on this node at least, for those who choose a node."""

from __future__ import annotations

from pathlib import Path

from rbee.core.errors import ModelIncompatible
from rbee.core.settings import Settings
from rbee.hive.devices import CPU, CUDA
from rbee.models.memory_fit import ModelShape, Room, Terms, calculate_fit, compare

FitMb = dict[str, dict[str, int]]
"""MB by backend and resource, e.g. ``{"cpu": {"ram": 900}, "cuda": {"ram": 700, "vram": 1200}}``."""


class ModelFits:
    """Calculates with this node's settings, and the smallest compute type that these allow."""

    def __init__(self, settings: Settings) -> None:
        worker, stated = settings.worker, settings.hardware
        self._setting = worker.compute_type
        self._context_tokens = worker.context_tokens
        asked = worker.max_parallel_requests
        self._slots = 1 if asked == "auto" else asked
        # What the amounts will be compared with does not matter here, only what they have to cover.
        self._room = Room(0, 0, stated.ram_available_mb is not None, stated.vram_available_mb is not None)

    def of(self, path: Path) -> FitMb | None:
        """The amounts for a GGUF or a model folder; None when it cannot be read or run.

        Reads headers at most once per file: not for an event loop.
        """
        amounts = {}
        for backend in (CPU, CUDA):
            shape, compute_type = self._shape(path, backend)
            if shape is None or compute_type not in shape.weights_bytes:
                return None
            terms = Terms(compute_type, self._context_tokens, self._slots, backend)
            fit = compare(calculate_fit(shape, terms), self._room)
            amounts[backend] = {each.resource: each.required_mb for each in fit}
        return amounts

    def _shape(self, path: Path, backend: str) -> tuple[ModelShape | None, str]:
        is_auto = self._setting == "auto"
        if path.is_dir():
            from rbee.models.model_shape import AS_STORED, shape_of_folder

            try:
                return shape_of_folder(path, backend), AS_STORED if is_auto else self._setting
            except ModelIncompatible:
                return None, self._setting
        from rbee.models.gguf_summaries import shape_of

        smallest = "int8_float16" if backend == CUDA else "int8"
        return shape_of(path), smallest if is_auto else self._setting
