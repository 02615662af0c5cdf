"""Puts a hive together from its parts, and gives it a beginning and an end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent

from rbee.core.errors import RbeeError
from rbee.core.logs import get_logger
from rbee.core.schemas import ModelBody, SpawnRequest, WorkerReadyCallback
from rbee.core.settings import Settings, SettingsError
from rbee.hive.app import COMPONENT, create_app
from rbee.hive.devices import CUDA, MIB, Devices
from rbee.hive.greenlets import start, start_repeating
from rbee.hive.health import HealthProbes
from rbee.hive.journal import end_orphans
from rbee.hive.keep_alive import KeepAlive
from rbee.hive.lease import Lease
from rbee.hive.loading import LoadingWatch
from rbee.hive.metrics import HiveMetrics
from rbee.hive.models import ModelStore
from rbee.hive.ports import Connect, PidJournal, WorkerLauncher
from rbee.hive.preflight import Preflight
from rbee.hive.registration import Notify, Registration
from rbee.hive.shutdown import Cascade
from rbee.hive.spawning import Spawner
from rbee.hive.stopping import WorkerStopper
from rbee.hive.supervision import Supervisor
from rbee.hive.threads import in_thread
from rbee.hive.upkeep import ModelUpkeep
from rbee.hive.vram import VramRecovery
from rbee.hive.worker_ports import PortClaim, WorkerPorts
from rbee.hive.workers import WorkerEvent, WorkerRegistry
from rbee.web.auth import KeyRing
from rbee.web.sse import OpenStreams

LEASE_CHECK_S = 0.5
LOG_CHECK_S = 30.0


@dataclass(frozen=True)
class HivePorts:
    """What a hive needs from outside."""

    launcher: WorkerLauncher
    connect: Connect
    journal: PidJournal
    devices: Devices
    store: ModelStore
    notify: Notify | None


@dataclass(frozen=True)
class HiveFacts:
    """What a hive knows about itself."""

    port: int
    daemon_pid: int
    owner: str | None
    worker_url: Callable[[int], str]
    claim_port: Callable[[int], PortClaim | None]
    """Takes a port for a worker, if one could listen on it now."""
    request_shutdown: Callable[[], None]
    read_key: Callable[[], str | None]
    """Reads the fleet key again; raises SettingsError."""
    cores: int
    """Processor cores that a worker may use."""


class Hive:
    """One hive; implements ``rbee.web.server.Service``."""

    def __init__(
        self, ports: HivePorts, facts: HiveFacts, settings: Settings, keys: KeyRing, metrics: HiveMetrics
    ) -> None:
        self.log = get_logger(COMPONENT)
        self.ports, self.facts, self.settings, self.keys, self.metrics = ports, facts, settings, keys, metrics
        timing, log = settings.timing, self.log
        self.lease = Lease(facts.owner, timing.lease_ttl_s)
        self.streams = OpenStreams(COMPONENT, timing.sse_keepalive_s)
        self.registry = WorkerRegistry(self._tell)
        self.stopper = WorkerStopper(self.registry, metrics, log)
        worker_ports = WorkerPorts(
            settings.pool.worker_port_min,
            settings.pool.worker_port_max,
            reserved_ports(settings, facts.port),
            facts.claim_port,
        )
        vram = VramRecovery(ports.devices, timing, log)
        self.supervisor = Supervisor(
            self.registry,
            self.stopper,
            worker_ports,
            ports.launcher,
            ports.journal,
            vram,
            settings,
            metrics,
            log,
        )
        self.probes = HealthProbes(self.registry, self.supervisor, self.stopper, vram, timing, metrics, log)
        self.worker_ids = lambda: [record.id for record in self.registry.records()]
        self.upkeep = ModelUpkeep(ports.store, settings.models_dir, self.registry)
        self.keep_alive = KeepAlive(self.registry, self.supervisor, settings, log)
        self.spawner = Spawner(
            self.registry,
            self.supervisor,
            self.stopper,
            LoadingWatch(self.registry, self.supervisor, timing, log),
            ports.store,
            Preflight(ports.devices, settings, self.registry.open_claims, facts.cores),
            ports.launcher,
            ports.journal,
            worker_ports,
            vram,
            ports.connect,
            facts.worker_url,
            facts.port,
            settings,
            metrics,
            log,
        )
        self.registration = Registration(self.registry, ports.notify, log)
        self.cascade = Cascade(
            self.registry,
            self.stopper,
            ports.journal,
            facts.port,
            self.spawner.close,
            ports.store.close,
            timing,
            log,
        )
        metrics.watch_workers(lambda: (record.state for record in self.registry.records()))
        metrics.watch_gpus(self._vram_bytes)
        self.app: Any = create_app(self)
        self._background: list[gevent.Greenlet] = []

    def end_orphans(self) -> None:
        """End what an earlier hive on this port left behind."""
        try:
            rows = self.ports.journal.rows(self.facts.port)
            end_orphans(self.ports.journal, rows, self.ports.launcher.forget, self.log)
        except RbeeError as error:
            self.log.warning("journal_not_read", message=error.message)

    def listening(self) -> None:
        """Start to supervise."""
        self.log.info(
            "startup", message="rbee-hive is listening", port=self.facts.port, owner=self.lease.owner
        )
        interval = self.settings.timing.health_probe_interval_s
        rounds = [
            (lambda: interval, self.probes.probe_all),
            (lambda: LOG_CHECK_S, self._bound_logs),
            (self.keep_alive.until_next_check, self.keep_alive.check),
        ]
        if self.lease.left_s() is not None:
            rounds.append((lambda: LEASE_CHECK_S, self._check_lease))
        self._background = [start_repeating(self.log, pause, look) for pause, look in rounds]
        self.ports.store.warm_up()
        start(self.log, in_thread, _build_schemas)

    def shut_down(self) -> None:
        """The cascade."""
        gevent.killall(self._background, block=False)
        self.cascade.run()
        self.streams.end_all("rbee-hive is shutting down")

    def reload(self) -> None:
        """Read the key again; a bad file leaves the old key in force."""
        try:
            self.keys.replace(self.facts.read_key())
        except SettingsError as error:
            self.log.error("key_not_reloaded", message=str(error))
        else:
            self.log.info("key_reloaded", message="the key was read again")

    def _check_lease(self) -> None:
        left_s = self.lease.left_s()
        if left_s is not None and left_s <= 0 and not self.cascade.has_begun:
            self.log.warning(
                "lease_expired",
                message=f"the lease of {self.lease.owner} has expired; this hive ends",
                owner=self.lease.owner,
            )
            self.facts.request_shutdown()

    def _bound_logs(self) -> None:
        worker_ids = self.worker_ids()

        def bound() -> None:
            for worker_id in worker_ids:
                self.ports.launcher.bound_log(worker_id)

        start(self.log, in_thread, bound)

    def _tell(self, event: WorkerEvent) -> None:
        before, after = event.before or "none", event.after or "removed"
        self.log.info(
            "worker_state",
            message=f"worker {event.worker_id}: {before} -> {after} ({event.reason})",
            worker_id=event.worker_id,
            before=before,
            after=after,
            reason=event.reason,
        )

    def _vram_bytes(self) -> dict[int, tuple[int, int]]:
        found = self.ports.devices.look()
        gpus = [(gpu.index, gpu.total_mb * MIB, gpu.free_mb * MIB) for gpu in found.gpus]
        return {index: (total, total - free) for index, total, free in gpus} if CUDA in found.counts else {}


def _build_schemas() -> None:
    """Do before the first request what it would have to wait for."""
    for body in (ModelBody, SpawnRequest, WorkerReadyCallback):
        body.model_rebuild()


def reserved_ports(settings: Settings, own_port: int) -> set[int]:
    """Ports that no worker may take: those of queen and hive, by default and as configured."""
    addresses = (settings.queen.listen_addr, settings.pool.listen_addr)
    stated = {int(address.rsplit(":", 1)[1]) for address in addresses}
    return {8080, 9200, own_port, settings.queen.local_hive_port} | stated
