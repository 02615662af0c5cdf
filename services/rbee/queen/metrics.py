"""The queen's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
_SCHEDULING_BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 1000, 5000, 30_000, 300_000)


class Metrics:
    """One set of metrics in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = Counter(
            "rbee_queen_tasks_total", "Tasks ended, by outcome", ["outcome"], registry=self.registry
        )
        self.dispatched = Counter(
            "rbee_queen_tasks_dispatched_total",
            "Tasks given to a worker, by how it was found (reused, waited, spawned)",
            ["outcome"],
            registry=self.registry,
        )
        self.scheduling_ms = Histogram(
            "rbee_queen_scheduling_latency_ms",
            "Milliseconds from the arrival of a task to its request at the worker",
            buckets=_SCHEDULING_BUCKETS_MS,
            registry=self.registry,
        )
        self.placement_seconds = Histogram(
            "rbee_queen_placement_seconds",
            "Seconds to choose the node of a task that names none",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.sweeps = Counter(
            "rbee_queen_sweeps_total",
            "Times that every hive was asked what it has; a fleet of few nodes needs no asking",
            registry=self.registry,
        )
        self.connections = Gauge(
            "rbee_queen_worker_connections_active", "Open inference streams", registry=self.registry
        )
        self.errors = Counter(
            "rbee_queen_errors_total",
            "Errors answered or streamed, by code",
            ["code"],
            registry=self.registry,
        )
        self._depth = Gauge("rbee_queen_queue_depth", "Open tasks", registry=self.registry)
        self._capacity = Gauge(
            "rbee_queen_queue_capacity", "Tasks that may be open at once", registry=self.registry
        )
        self._owned = Gauge("rbee_queen_hives_owned", "Hives this queen ends", registry=self.registry)

    def watch(self, open_tasks: Callable[[], int], capacity: int, hives_owned: Callable[[], int]) -> None:
        """Read the gauges from their sources whenever they are scraped."""
        self._depth.set_function(open_tasks)
        self._capacity.set(capacity)
        self._owned.set_function(hives_owned)

    def count_error(self, code: str) -> None:
        self.errors.labels(code=code).inc()
