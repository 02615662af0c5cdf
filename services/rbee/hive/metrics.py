"""The hive's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rbee.core.lifecycle import WorkerState

REQUEST_BUCKETS = (0.001, 0.01, 0.1, 1, 10)


class HiveMetrics:
    """Counts what happens; gauges are read from their source when somebody asks for ``/metrics``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._starts = self._counter("worker_starts", "Worker starts by outcome", "outcome")
        self._stops = self._counter("worker_stops", "Ends of workers by reason", "reason")
        self._crashes = self._counter("worker_crashes", "Workers that ended unasked with a failure")
        self._kills = self._counter("worker_forced_kills", "Signals sent to workers", "signal")
        self._checks = self._counter("health_checks", "Health probes by result", "result")
        self._downloads = self._counter("model_downloads", "Model downloads by outcome", "outcome")
        self._conversions = self._counter("conversions", "Model conversions by outcome", "outcome")
        self._errors = self._counter("errors", "Error answers by code", "code")
        self._downloading = Gauge("rbee_hive_download_active", "Downloads under way", registry=self.registry)
        self._download_percent = Gauge(
            "rbee_hive_download_progress_percent", "Progress of the latest download", registry=self.registry
        )
        self._durations = Histogram(
            "rbee_hive_request_duration_seconds",
            "Time to answer a request",
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )

    def started(self, outcome: str) -> None:
        """A start is over: ``ok`` or ``failed``."""
        self._starts.labels(outcome).inc()

    def stopped(self, reason: str) -> None:
        self._stops.labels(reason).inc()

    def crashed(self) -> None:
        self._crashes.inc()

    def forced_kill(self, signal_name: str) -> None:
        self._kills.labels(signal_name).inc()

    def probed(self, result: str) -> None:
        self._checks.labels(result).inc()

    def download_began(self) -> None:
        self._downloading.inc()
        self._download_percent.set(0)

    def download_progressed(self, percent: float) -> None:
        self._download_percent.set(percent)

    def download_ended(self, outcome: str) -> None:
        self._downloading.dec()
        self._downloads.labels(outcome).inc()

    def conversion_ended(self, outcome: str) -> None:
        self._conversions.labels(outcome).inc()

    def answered_error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def answered(self, started: float) -> None:
        """A request was answered; ``started`` is of ``time.perf_counter``."""
        self._durations.observe(time.perf_counter() - started)

    def watch_workers(self, states: Callable[[], Iterable[WorkerState]]) -> None:
        """Show the number of workers in each state, read when asked for."""
        self.registry.register(_Gauges(lambda: _worker_gauge(states())))

    def watch_gpus(self, vram: Callable[[], Mapping[int, tuple[int, int]]]) -> None:
        """Show device memory; ``vram`` gives total and used bytes by device index."""
        self.registry.register(_Gauges(lambda: _gpu_gauges(vram())))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rbee_hive_{name}_total", text, labels, registry=self.registry)


class _Gauges(Collector):
    def __init__(self, read: Callable[[], Iterator[GaugeMetricFamily]]) -> None:
        self._read = read

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing at registration, so that no device is looked at before it is asked for."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._read()


def _worker_gauge(states: Iterable[WorkerState]) -> Iterator[GaugeMetricFamily]:
    present = list(states)
    gauge = GaugeMetricFamily("rbee_hive_workers_total", "Workers by state", labels=["state"])
    for state in WorkerState:
        gauge.add_metric([state], present.count(state))
    yield gauge


def _gpu_gauges(vram: Mapping[int, tuple[int, int]]) -> Iterator[GaugeMetricFamily]:
    yield GaugeMetricFamily("rbee_hive_gpus_total", "CUDA devices", value=len(vram))
    total = GaugeMetricFamily("rbee_hive_vram_total_bytes", "Device memory", labels=["device"])
    used = GaugeMetricFamily("rbee_hive_vram_allocated_bytes", "Device memory in use", labels=["device"])
    for device, (total_bytes, used_bytes) in sorted(vram.items()):
        total.add_metric([str(device)], total_bytes)
        used.add_metric([str(device)], used_bytes)
    yield total
    yield used
