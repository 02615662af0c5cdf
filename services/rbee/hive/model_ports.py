"""What the model store needs from outside: somebody who fetches and converts, and somebody who counts."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rbee.core.references import ModelRef
from rbee.hive.local_models import LocalModel
from rbee.hive.shared_work import OnEvent


class Provisioner(Protocol):
    """Works outside of this process. Each method but ``close`` blocks the calling greenlet until it is done.

    Raises (all of these): the RbeeError that the work ended with; ServiceUnavailable after ``close``.
    """

    def fetch(self, ref: ModelRef, on_event: OnEvent) -> Path:
        """Bring a model to this node and into its catalog."""

    def convert(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> Path:
        """Convert a GGUF to the engine's format; returns the folder."""

    def verify(self, ref: ModelRef | None, on_event: OnEvent) -> None:
        """Check one model of the catalog or all, telling of each; ModelDamaged at the end if one is."""

    def measure_quality(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> None:
        """Convert a GGUF if that is to be done, and compare the conversion with float32; the figures are the
        event of the stage ``measured``."""

    def close(self) -> None:
        """End the work under way, and accept none any more."""


class ModelObserver(Protocol):
    """Told what happens to models, for metrics."""

    def download_began(self) -> None: ...

    def download_progressed(self, percent: float) -> None: ...

    def download_ended(self, outcome: str) -> None:
        """``ok`` or an error code."""

    def conversion_ended(self, outcome: str) -> None:
        """``ok`` or an error code."""
