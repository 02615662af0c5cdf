"""The worker's Prometheus metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rbee.core.lifecycle import WorkerState
from rbee.worker.slots import Slots

_STATE_NUMBERS = {
    WorkerState.LOADING: 0,
    WorkerState.IDLE: 1,
    WorkerState.BUSY: 2,
    WorkerState.DRAINING: 3,
    WorkerState.ERROR: 4,
}
_DURATION_BUCKETS_MS = (50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)


class Outcome(StrEnum):
    """How a request for an inference ended."""

    DONE = "done"
    CANCELED = "canceled"
    CLIENT_GONE = "client_gone"
    TIMEOUT = "timeout"
    FAILED = "failed"
    REFUSED = "refused"
    """Not accepted: invalid, busy or not ready."""


class Metrics:
    """One set of metrics in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "rbee_worker_requests_total", "Inference requests, by outcome", ["outcome"], registry=registry
        )
        self.tokens_in = Counter("rbee_worker_tokens_in_total", "Prompt tokens accepted", registry=registry)
        self.tokens_reused = Counter(
            "rbee_worker_tokens_reused_total",
            "Prompt tokens whose state was kept from an earlier request",
            registry=registry,
        )
        self.tokens_generated = Counter(
            "rbee_worker_tokens_generated_total", "Tokens taken from the engine", registry=registry
        )
        self.duration_ms = Histogram(
            "rbee_worker_inference_duration_ms",
            "Milliseconds from the started event to the end of the inference",
            buckets=_DURATION_BUCKETS_MS,
            registry=registry,
        )
        for outcome in Outcome:
            self._requests.labels(outcome=outcome)

    def count(self, outcome: Outcome) -> None:
        self._requests.labels(outcome=outcome).inc()

    def watch(
        self, slots: Slots, memory_bytes: Callable[[], int], now: Callable[[], float] = time.time
    ) -> None:
        """Read the gauges from their sources whenever they are scraped."""
        started = now()
        self._gauge("rbee_worker_vram_bytes", "Memory the model takes, in bytes", memory_bytes)
        self._gauge(
            "rbee_worker_state",
            "0 loading, 1 idle, 2 busy, 3 draining, 4 error",
            lambda: _STATE_NUMBERS[slots.state],
        )
        self._gauge("rbee_worker_slots_total", "Requests that can run at once", lambda: slots.total)
        self._gauge("rbee_worker_slots_busy", "Requests that run now", lambda: slots.busy)
        self._gauge("rbee_worker_uptime_seconds", "Seconds since the start", lambda: now() - started)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)
