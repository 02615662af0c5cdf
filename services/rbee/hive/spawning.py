"""Starts workers: model, preflight, conversion, process – and tells the story of it while it happens."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gevent
from gevent.lock import BoundedSemaphore

from rbee.core.clock import utc_iso
from rbee.core.errors import InternalError, RbeeError, ServiceUnavailable, WorkerNotFound, WorkerStartFailed
from rbee.core.lifecycle import WorkerState
from rbee.core.references import ModelRef, parse_model_ref
from rbee.core.schemas import SpawnRequest
from rbee.core.settings import Settings
from rbee.hive.greenlets import start
from rbee.hive.loading import LoadingWatch
from rbee.hive.local_models import LocalModel
from rbee.hive.metrics import HiveMetrics
from rbee.hive.ports import Connect, JournalRow, Narrator, PidJournal, WorkerLauncher, WorkerOrder
from rbee.hive.preflight import Placement
from rbee.hive.startup import StartupLog
from rbee.hive.stopping import WorkerStopper
from rbee.hive.supervision import Supervisor
from rbee.hive.vram import VramRecovery
from rbee.hive.worker_ports import WorkerPorts
from rbee.hive.workers import EndReason, WorkerRecord, WorkerRegistry, WorkerSeat

HIVE = "rbee-hive"
OnEvent = Callable[[dict[str, Any]], None]


class Models(Protocol):
    """What a spawn needs of the model store."""

    def find(self, ref: ModelRef) -> LocalModel | None: ...

    def provide(self, ref: ModelRef, on_event: OnEvent) -> LocalModel: ...

    def converted(self, local: LocalModel, ref: ModelRef, compute_type: str) -> Path | None: ...

    def convert(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> Path: ...

    def touch(self, ref: ModelRef) -> None: ...


class Checks(Protocol):
    """What a spawn needs of the preflight."""

    def check_worker(
        self, local: LocalModel, backend: str | None, device: int | None, narrate: Narrator
    ) -> Placement: ...

    def check_again(self, placement: Placement, narrate: Narrator) -> None: ...


@dataclass(frozen=True)
class Spawned:
    """What the caller of a spawn gets: the worker and its key."""

    record: WorkerRecord
    key: str
    reused: bool

    def wire(self) -> dict[str, Any]:
        record = self.record
        return {
            "worker_id": record.id,
            "url": record.url,
            "state": record.state,
            "model_ref": record.model_ref,
            "backend": record.backend,
            "device": record.device,
            "api_key": self.key,
            "reused": self.reused,
        }


class Spawner:
    """Use case of ``POST /v1/workers/spawn``.

    Args:
        connect: makes the connection to a worker on a port of this machine.
        worker_url: the URL under which others reach a worker on a port.
        hive_port: written into the journal.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        supervisor: Supervisor,
        stopper: WorkerStopper,
        loading: LoadingWatch,
        models: Models,
        checks: Checks,
        launcher: WorkerLauncher,
        journal: PidJournal,
        ports: WorkerPorts,
        vram: VramRecovery,
        connect: Connect,
        worker_url: Callable[[int], str],
        hive_port: int,
        settings: Settings,
        metrics: HiveMetrics,
        log: Any,
    ) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._stopper = stopper
        self._loading = loading
        self._models = models
        self._checks = checks
        self._launcher = launcher
        self._journal = journal
        self._ports = ports
        self._vram = vram
        self._connect = connect
        self._worker_url = worker_url
        self._hive_port = hive_port
        self._timing = settings.timing
        self._metrics = metrics
        self._log = log
        self._is_closed = False
        self._deciding = BoundedSemaphore()
        """One spawn at a time between its look at what is free and its claim on it."""

    def close(self) -> None:
        """Refuse spawns from now on: the hive is shutting down."""
        self._is_closed = True

    def spawn(self, request: SpawnRequest) -> Spawned:
        """Start a worker, or give the data of the live one that is named.

        Returns as soon as the preflight has passed; conversion and start go on in the background.

        Raises:
            RbeeError: the model cannot be had, a check fails, no port is free, the program is missing.
        """
        if request.worker_id is not None:
            record = self._registry.find(request.worker_id)
            if record is not None:
                return Spawned(record, self._registry.seat(record.id).key, True)
        if request.model_ref is None:
            raise WorkerNotFound(request.worker_id or "")
        self._refuse_when_closed()
        self._launcher.check()
        ref, startup = parse_model_ref(request.model_ref), StartupLog()
        try:
            local = self._models.find(ref) or self._models.provide(ref, startup.event)
            self._vram.settle()
            with self._deciding:
                placement = self._checks.check_worker(local, request.backend, request.device, startup.narrate)
                self._refuse_when_closed()
                record, seat = self._enter(ref, placement, startup)
        except RbeeError:
            self._metrics.started("refused")
            raise
        start(self._log, self._bring_up, record, seat, local, ref, placement)
        return Spawned(record, seat.key, False)

    def _enter(
        self, ref: ModelRef, placement: Placement, startup: StartupLog
    ) -> tuple[WorkerRecord, WorkerSeat]:
        worker_id, key, port = f"worker-{uuid.uuid4()}", f"key-{uuid.uuid4()}", self._ports.reserve()
        record = WorkerRecord(
            id=worker_id,
            url=self._worker_url(port),
            model_ref=str(ref),
            backend=placement.backend,
            device=placement.device,
            state=WorkerState.LOADING,
            slots_total=placement.slots,
            slots_available=0,
            last_activity=utc_iso(),
            idle_since=None,
            pid=None,
            failed_health_checks=0,
            log_path=str(self._launcher.log_path(worker_id)),
        )
        seat = WorkerSeat(key, port, self._connect(port, key), startup, claim=placement.claim)
        self._registry.add(record, seat, "spawn")
        self._log.info(
            "worker_spawn",
            message=f"starting {worker_id} for {ref} on {placement.backend}:{placement.device}, port {port}",
            worker_id=worker_id,
            model_ref=str(ref),
            device=f"{placement.backend}:{placement.device}",
            port=port,
            compute_type=placement.compute_type,
        )
        return record, seat

    def _bring_up(
        self, record: WorkerRecord, seat: WorkerSeat, local: LocalModel, ref: ModelRef, placement: Placement
    ) -> None:
        """Everything between the answer to a spawn and the worker's HTTP."""
        try:
            folder = self._converted(seat, local, ref, placement)
            self._launch(record, seat, folder)
            self._await_http(record, seat)
        except Exception as error:
            failure = error if isinstance(error, RbeeError) else None
            if failure is None:
                self._log.error("internal_error", message=type(error).__name__, exc_info=error)
            self._fail(record.id, seat, failure or InternalError("The worker could not be started"))
            return
        seat.startup.succeed()
        self._metrics.started("ok")
        self._loading.begin(record.id, seat)

    def _converted(self, seat: WorkerSeat, local: LocalModel, ref: ModelRef, placement: Placement) -> Path:
        folder = self._models.converted(local, ref, placement.compute_type)
        if folder is None:
            converting = gevent.spawn(
                _outcome, self._models.convert, local, ref, placement.compute_type, seat.startup.event
            )
            gevent.wait([converting, seat.stop_asked], count=1)
            self._refuse_when_stopped(seat)
            folder = converting.get()
            if isinstance(folder, RbeeError):
                raise folder
            self._checks.check_again(placement, seat.startup.narrate)
        self._models.touch(ref)
        return folder

    def _launch(self, record: WorkerRecord, seat: WorkerSeat, folder: Path) -> None:
        self._refuse_when_stopped(seat)
        seat.model_folder = folder
        where = f"{record.backend}:{record.device}, port {seat.port}"
        seat.startup.narrate(HIVE, "worker_spawn", f"Starting llm-worker-rbee on {where}")
        order = WorkerOrder(
            record.id,
            folder,
            record.model_ref,
            record.backend,
            record.device,
            seat.port,
            seat.key,
            record.slots_total,
        )
        process = self._launcher.launch(order, seat.startup.narrate)
        self._registry.started(record.id, process)
        self._supervisor.attend(record.id, seat, process)
        row = JournalRow(
            record.id, self._hive_port, process.pid, process.started, seat.port, int(time.time())
        )
        self._journal.add(row)
        if seat.stop_asked.is_set():
            # Whoever asked found no process to end.
            why = "it was ended while it was being started"
            self._stopper.give_up(record.id, seat, EndReason.REQUESTED, why)

    def _await_http(self, record: WorkerRecord, seat: WorkerSeat) -> None:
        """Wait for the callback; a poll finds a worker whose callback got lost."""
        deadline = time.monotonic() + self._timing.worker_start_timeout_s
        while not seat.up.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f"no HTTP within {self._timing.worker_start_timeout_s:g} s"
                raise WorkerStartFailed(waited, log_path=record.log_path)
            gevent.wait(
                [seat.up, seat.gone, seat.stop_asked],
                timeout=min(left, self._timing.ready_poll_interval_s),
                count=1,
            )
            if seat.gone.is_set():
                raise seat.startup.error or WorkerStartFailed("the process ended", log_path=record.log_path)
            self._refuse_when_stopped(seat)
            if not seat.up.is_set() and self._supervisor.look(
                record.id, seat, min(max(left, 0.1), self._timing.ready_poll_timeout_s), "start"
            ):
                seat.up.set()

    def _fail(self, worker_id: str, seat: WorkerSeat, error: RbeeError) -> None:
        """The start is over without a worker: readers are told, and nothing of it stays."""
        seat.startup.fail(error)
        self._metrics.started("failed")
        self._log.warning(
            "worker_start_failed", message=error.message, worker_id=worker_id, error_code=error.code
        )
        if seat.process is None:
            self._supervisor.release(worker_id, seat, seat.end_reason or EndReason.START_FAILED, error)
        elif not seat.gone.is_set() and not seat.stop_asked.is_set():
            self._stopper.give_up(worker_id, seat, EndReason.START_FAILED, error.message)

    def _refuse_when_closed(self) -> None:
        if self._is_closed:
            raise ServiceUnavailable("rbee-hive is shutting down")

    def _refuse_when_stopped(self, seat: WorkerSeat) -> None:
        if seat.stop_asked.is_set():
            raise WorkerStartFailed("it was ended before it was ready")


def _outcome(work: Callable[..., Path], *arguments: Any) -> Path | RbeeError:
    """Work in a greenlet whose failure is a value, so that gevent does not print a traceback of it."""
    try:
        return work(*arguments)
    except RbeeError as error:
        return error
