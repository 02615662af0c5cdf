"""The supervising parts of a hive over fakes, put together as in ``rbee.hive.service``, with short times."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from rbee.core.errors import RbeeError
from rbee.core.lifecycle import WorkerState
from rbee.core.references import ModelRef
from rbee.core.schemas import SpawnRequest
from rbee.core.settings import Pool, Settings, Timing
from rbee.hive.health import HealthProbes
from rbee.hive.keep_alive import KeepAlive
from rbee.hive.loading import LoadingWatch
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.memory_claims import MemoryClaim
from rbee.hive.metrics import HiveMetrics
from rbee.hive.preflight import Placement
from rbee.hive.registration import Registration
from rbee.hive.shutdown import Cascade
from rbee.hive.spawning import Checks, Spawned, Spawner
from rbee.hive.stopping import WorkerStopper
from rbee.hive.supervision import Supervisor
from rbee.hive.vram import VramRecovery
from rbee.hive.worker_ports import WorkerPorts
from rbee.hive.workers import WorkerEvent, WorkerRegistry
from rbee.testing.fake_workers import FakeConnection, FakeLauncher, MemoryJournal

HIVE_PORT = 9200
REF = "hf:a/b"
SHORT = Timing(
    worker_start_timeout_s=0.3,
    ready_poll_interval_s=0.05,
    ready_poll_timeout_s=0.2,
    loading_timeout_s=0.2,
    health_probe_timeout_s=0.1,
    idle_timeout_s=0.2,
    idle_check_interval_s=0.02,
    shutdown_ack_timeout_s=0.1,
    shutdown_kill_after_s=0.2,
    worker_drain_timeout_s=0.3,
    hive_shutdown_timeout_s=0.6,
    vram_recovery_timeout_s=0.2,
    vram_recovery_poll_ms=10,
)


class FakeModels:
    """What a spawn needs of the model store."""

    def __init__(self) -> None:
        self.present = True
        self.is_converted = True
        self.conversion_may_end = Event()
        self.conversion_may_end.set()
        self.error: RbeeError | None = None
        self.touched: list[ModelRef] = []
        self.local = LocalModel(Path("/models/x.gguf"), ModelFormat.GGUF, 1000, None)

    def find(self, ref: ModelRef) -> LocalModel | None:
        return self.local if self.present else None

    def provide(self, ref: ModelRef, on_event: Callable[[dict[str, Any]], None]) -> LocalModel:
        on_event({"event": "progress", "data": {"stage": "downloading"}})
        if self.error is not None:
            raise self.error
        return self.local

    def converted(self, local: LocalModel, ref: ModelRef, compute_type: str) -> Path | None:
        return Path("/models/ct2/x") if self.is_converted else None

    def convert(
        self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: Callable[[dict[str, Any]], None]
    ) -> Path:
        on_event({"event": "progress", "data": {"stage": "converting"}})
        self.conversion_may_end.wait()
        if self.error is not None:
            raise self.error
        return Path("/models/ct2/x")

    def touch(self, ref: ModelRef) -> None:
        self.touched.append(ref)


class FakeChecks:
    """What a spawn needs of the preflight."""

    def __init__(self) -> None:
        self.backend = "cpu"
        self.error: RbeeError | None = None
        self.later_error: RbeeError | None = None

    def check_worker(self, local: LocalModel, backend: Any, device: Any, narrate: Any) -> Placement:
        narrate("rbee-hive", "preflight", "checked")
        if self.error is not None:
            raise self.error
        where = (backend or self.backend, device or 0)
        return Placement(*where, "int8", 1, MemoryClaim(*where, 100))

    def check_again(self, placement: Placement, narrate: Any) -> None:
        if self.later_error is not None:
            raise self.later_error


class FakeVram:
    """Free device memory, as a test sets it."""

    def __init__(self) -> None:
        self.free = 1000

    def free_mb(self, device: int) -> int | None:
        return self.free


class LogLines:
    """Collects log lines: a list of events with their facts."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def _write(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})

    debug = info = warning = error = _write

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


class Supervised:
    """All parts over fakes."""

    def __init__(
        self,
        timing: Timing = SHORT,
        policy: Any = "auto",
        make_checks: Callable[[WorkerRegistry], Checks] | None = None,
        **launcher: Any,
    ) -> None:
        self.settings = Settings(timing=timing, pool=Pool(keep_alive_policy=policy))
        self.log, self.metrics, self.told = LogLines(), HiveMetrics(), list[WorkerEvent]()
        self.launcher, self.journal, self.models = FakeLauncher(**launcher), MemoryJournal(), FakeModels()
        self.checks, self.vram_meter = FakeChecks(), FakeVram()
        self.connections: dict[int, FakeConnection] = {}
        self.registry = WorkerRegistry(self.told.append)
        self.ports = WorkerPorts(8001, 8003, [], lambda _port: io.StringIO())
        self.stopper = WorkerStopper(self.registry, self.metrics, self.log)
        self.vram = VramRecovery(self.vram_meter, timing, self.log)
        self.supervisor = Supervisor(
            self.registry,
            self.stopper,
            self.ports,
            self.launcher,
            self.journal,
            self.vram,
            self.settings,
            self.metrics,
            self.log,
        )
        self.probes = HealthProbes(
            self.registry, self.supervisor, self.stopper, self.vram, timing, self.metrics, self.log
        )
        self.keep_alive = KeepAlive(self.registry, self.supervisor, self.settings, self.log)
        self.spawner = Spawner(
            self.registry,
            self.supervisor,
            self.stopper,
            LoadingWatch(self.registry, self.supervisor, timing, self.log),
            self.models,
            make_checks(self.registry) if make_checks else self.checks,
            self.launcher,
            self.journal,
            self.ports,
            self.vram,
            self._connect,
            lambda port: f"http://node:{port}",
            HIVE_PORT,
            self.settings,
            self.metrics,
            self.log,
        )
        self.notices: list[dict[str, Any]] = []
        self.registration = Registration(self.registry, self.notices.append, self.log)
        self.models_closed = threading.Event()
        self.cascade = Cascade(
            self.registry,
            self.stopper,
            self.journal,
            HIVE_PORT,
            self.spawner.close,
            self.models_closed.set,
            timing,
            self.log,
        )

    def _connect(self, port: int, _key: str) -> FakeConnection:
        self.connections[port] = FakeConnection()
        return self.connections[port]

    def spawn(self, **fields: Any) -> Spawned:
        return self.spawner.spawn(SpawnRequest(**{"model_ref": REF, **fields}))

    def up(self, **fields: Any) -> Spawned:
        """A worker whose process runs and whose HTTP has been seen."""
        spawned = self.spawn(**fields)
        self.until(lambda: self.registry.get(spawned.record.id).pid is not None)
        self.registry.seat(spawned.record.id).up.set()
        gevent.sleep(0)
        return spawned

    def idle(self, idle_since: str | None = None, **fields: Any) -> Spawned:
        """A worker that is idle."""
        spawned = self.up(**fields)
        self.connection(spawned).become(WorkerState.IDLE, idle_since)
        self.connection(spawned).loaded.set()
        self.until(lambda: self.registry.get(spawned.record.id).state is WorkerState.IDLE)
        return spawned

    def connection(self, spawned: Spawned) -> FakeConnection:
        return self.connections[int(spawned.record.url.rsplit(":", 1)[1])]

    def state(self, spawned: Spawned) -> WorkerState | None:
        record = self.registry.find(spawned.record.id)
        return None if record is None else record.state

    def until(self, condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
        """Let greenlets run until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"did not come about; log: {self.log.lines}"
            gevent.sleep(0.005)

    def until_gone(self, spawned: Spawned) -> None:
        self.until(lambda: self.registry.find(spawned.record.id) is None)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"rbee_hive_{name}", labels) or 0.0
