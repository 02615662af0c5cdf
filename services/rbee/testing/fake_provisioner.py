"""Fetches and converts in memory, as fast or slow as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gevent.event import Event

from rbee.core.errors import RbeeError, ServiceUnavailable
from rbee.core.references import ModelRef
from rbee.hive.local_models import LocalModel
from rbee.hive.shared_work import OnEvent, WireEvent


class FakeProvisioner:
    """Implements Provisioner.

    ``fetched`` puts a model in place and tells its path; ``events`` are told first. Work waits for ``gate``.
    Set ``error`` to make it fail.
    """

    def __init__(self, fetched: Callable[[ModelRef], Path], converted: Path | None = None) -> None:
        self.fetches: list[ModelRef] = []
        self.conversions: list[tuple[ModelRef, str]] = []
        self.measurements: list[tuple[Path, ModelRef, str]] = []
        self.verifications: list[ModelRef | None] = []
        self.events: list[WireEvent] = []
        self.error: RbeeError | None = None
        self.gate = Event()
        self.gate.set()
        self._fetched = fetched
        self._converted = converted
        self._is_closed = False

    def fetch(self, ref: ModelRef, on_event: OnEvent) -> Path:
        self.fetches.append(ref)
        self._work(on_event)
        return self._fetched(ref)

    def convert(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> Path:
        self.conversions.append((ref, compute_type))
        self._work(on_event)
        return self._converted or local.path

    def measure_quality(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> None:
        self.measurements.append((local.path, ref, compute_type))
        self._work(on_event)
        on_event({"event": "progress", "data": {"stage": "measured", "compute_type": compute_type}})

    def verify(self, ref: ModelRef | None, on_event: OnEvent) -> None:
        self.verifications.append(ref)
        self._work(on_event)

    def close(self) -> None:
        self._is_closed = True
        self.gate.set()

    def _work(self, on_event: OnEvent) -> None:
        for event in self.events:
            on_event(event)
        self.gate.wait()
        if self._is_closed:
            raise ServiceUnavailable("rbee-hive is shutting down")
        if self.error is not None:
            raise self.error
