"""One task from its node to its last token: reach the hive, find or make a worker, generate, relay."""

from __future__ import annotations

import time
from dataclasses import dataclass

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    AllSlotsBusy,
    InvalidApiKey,
    LoadingTimeout,
    MissingApiKey,
    RbeeError,
    RequestCanceled,
    RequestTimeout,
    WorkerCrashed,
    WorkerNotReady,
    WorkerStartFailed,
)
from rbee.core.events import encode_event, encode_narration
from rbee.core.lifecycle import WorkerState
from rbee.core.logs import get_logger
from rbee.core.schemas import TaskRequest
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet
from rbee.queen.greenlets import spawn
from rbee.queen.metrics import Metrics
from rbee.queen.placement import choose_worker
from rbee.queen.ports import HiveApi, WorkerAccess, WorkerApi, WorkerRecord
from rbee.queen.registry import Node
from rbee.queen.relay import (
    InferenceRelay,
    LoadingProgress,
    Send,
    hive_answers,
    relay_download,
    relay_loading,
    relay_startup,
)
from rbee.queen.retries import busy_line, busy_wait_s
from rbee.queen.tasks import TaskCanceled

ACTOR = "queen-rbee"


@dataclass(frozen=True)
class Task:
    """What a client asked for, with everything decided that needs no hive."""

    request_id: str
    node: Node
    model_ref: str
    request: TaskRequest
    client_version: str | None
    arrived: float
    """On the monotonic clock."""


class _WorkerLeft(Exception):
    """The chosen worker is shutting down or gone; another one may serve."""

    def __init__(self, error: RbeeError) -> None:
        super().__init__(error.message)
        self.error = error


class KnownWorkers:
    """Keys of workers this queen spawned or asked for; in memory only."""

    def __init__(self) -> None:
        self._access: dict[str, WorkerAccess] = {}

    def learn(self, access: WorkerAccess) -> WorkerAccess:
        while len(self._access) >= 1024:
            self._access.pop(next(iter(self._access)))
        self._access[access.worker_id] = access
        return access

    def access_to(self, hive: HiveApi, record: WorkerRecord) -> WorkerAccess:
        """How to call a listed worker; its hive is asked when this queen has no key for it."""
        known = self._access.get(record.worker_id)
        if known is not None and known.url == record.url:
            return known
        with hive_answers(hive):
            return self.learn(hive.access(record.worker_id))

    def forget(self, worker_id: str) -> None:
        self._access.pop(worker_id, None)


class TaskFlow:
    """Carries out tasks; one instance serves all of them."""

    def __init__(self, fleet: Fleet, known: KnownWorkers, timing: Timing, metrics: Metrics) -> None:
        self._fleet = fleet
        self._known = known
        self._timing = timing
        self._metrics = metrics

    def run(self, task: Task, send: Send) -> tuple[bytes, str | None]:
        """Do everything; returns the terminal event, not yet sent, and its error code if it has one.

        Raises:
            RbeeError: the task failed before its worker sent a terminal event.
        """
        return _Run(task, send, self._fleet, self._known, self._timing, self._metrics).run()


class _Run:
    """One task under way."""

    def __init__(
        self,
        task: Task,
        send: Send,
        fleet: Fleet,
        known: KnownWorkers,
        timing: Timing,
        metrics: Metrics,
    ) -> None:
        self._task = task
        self._send = send
        self._fleet = fleet
        self._known = known
        self._timing = timing
        self._metrics = metrics
        self._log = get_logger(ACTOR).bind(request_id=task.request_id, node=task.node.node_name)
        self._left: set[str] = set()
        self._deadline: float | None = None
        """When ``timeout_seconds`` is over; set once ``started`` was sent."""

    def run(self) -> tuple[bytes, str | None]:
        hive = self._fleet.reach(self._task.node, self._narrate, self._task.client_version)
        try:
            return self._infer(self._ready_worker(hive))
        except _WorkerLeft as left:
            self._narrate("retry", f"{left}; looking for another worker")
        try:
            return self._infer(self._ready_worker(hive))
        except _WorkerLeft as left:
            raise left.error from None

    def _narrate(self, action: str, text: str) -> None:
        self._log.info("narration", message=text, action=action)
        self._send(encode_narration(ACTOR, action, text))

    def _ready_worker(self, hive: HiveApi) -> WorkerApi:
        """Steps 5 to 8: a worker that has the model loaded."""
        task, wanted = self._task, self._task.request
        with hive_answers(hive):
            listed = hive.workers()
        chosen = choose_worker(listed, task.model_ref, wanted.backend, wanted.device, excluded=self._left)
        if chosen is None:
            worker, outcome = self._spawn(hive), "spawned"
        else:
            worker = self._fleet.peers.worker(self._known.access_to(hive, chosen))
            outcome = "reused"
            if chosen.state is WorkerState.LOADING:
                outcome = "waited"
                self._follow_startup(hive, worker)
        if outcome != "reused":
            self._await_ready(hive, worker)
        self._metrics.dispatched.labels(outcome=outcome).inc()
        return worker

    def _spawn(self, hive: HiveApi) -> WorkerApi:
        """Steps 6 and 7: preflight, model, worker."""
        task, wanted = self._task, self._task.request
        self._fleet.preflight(task.node, hive)
        self._narrate("preflight", f"rbee-hive on {task.node.node_name} is alive")
        provide_model(hive, task.model_ref, self._send)
        with hive_answers(hive):
            access = self._known.learn(hive.spawn(task.model_ref, wanted.backend, wanted.device))
        self._log.info("worker_spawned", message="spawn accepted", worker_id=access.worker_id)
        worker = self._fleet.peers.worker(access)
        self._follow_startup(hive, worker)
        return worker

    def _follow_startup(self, hive: HiveApi, worker: WorkerApi) -> None:
        with hive_answers(hive), hive.narration(worker.access.worker_id) as events:
            relay_startup(hive, events, self._send)

    def _await_ready(self, hive: HiveApi, worker: WorkerApi) -> None:
        """Step 8: poll until the model is loaded, relaying the layers.

        Raises:
            LoadingTimeout: after ``loading_timeout_s``; the hive has been told to end the worker.
        """
        began = time.monotonic()
        deadline = began + self._timing.loading_timeout_s
        progress = LoadingProgress()
        follower = spawn(self._follow_loading, worker, progress)
        try:
            while True:
                state = self._poll_ready(hive, worker)
                if state is None:
                    return
                if progress.error is not None:
                    raise progress.error
                left = deadline - time.monotonic()
                if left <= 0:
                    self._end_stuck(hive, worker)
                    raise LoadingTimeout(
                        state, progress.layers_loaded, progress.layers_total, time.monotonic() - began
                    )
                pause = min(self._timing.ready_poll_interval_s, left)
                if follower.ready():
                    gevent.sleep(min(pause, 0.02) if progress.is_ready else pause)
                else:
                    follower.join(pause)
        finally:
            follower.kill(block=False)

    def _follow_loading(self, worker: WorkerApi, progress: LoadingProgress) -> None:
        try:
            with worker.loading_progress() as events:
                relay_loading(events, self._send, progress)
        except (TransportFailure, RbeeError) as failure:
            self._log.info("loading_progress_lost", message=str(failure))

    def _poll_ready(self, hive: HiveApi, worker: WorkerApi) -> str | None:
        """None when the worker can take a request, else the state it is in.

        Raises:
            WorkerStartFailed: it is gone or has failed.
        """
        try:
            body = worker.ready(self._timing.ready_poll_timeout_s)
        except TransportFailure as failure:
            self._refuse_gone(hive, worker, failure)
            return str(WorkerState.LOADING)
        except (InvalidApiKey, MissingApiKey):
            raise self._wrong_key(worker) from None
        state = str(body.get("state"))
        if body.get("ready") is True or state == WorkerState.BUSY:
            return None
        if state == WorkerState.ERROR:
            raise _loading_error(worker)
        if state == WorkerState.DRAINING:
            raise self._leave(worker, WorkerNotReady(state))
        return state

    def _refuse_gone(self, hive: HiveApi, worker: WorkerApi, failure: TransportFailure) -> None:
        """A worker that does not answer is either slow or dead; its hive knows."""
        with hive_answers(hive):
            if any(record.worker_id == worker.access.worker_id for record in hive.workers()):
                return
        self._known.forget(worker.access.worker_id)
        try:
            self._follow_startup(hive, worker)
        except RbeeError as told:
            if told.code not in ("WORKER_NOT_FOUND", "BAD_HIVE_RESPONSE"):
                raise
        raise WorkerStartFailed(f"it ended while loading the model ({failure.reason})") from failure

    def _end_stuck(self, hive: HiveApi, worker: WorkerApi) -> None:
        try:
            hive.end_worker(worker.access.worker_id)
        except (RbeeError, TransportFailure) as failure:
            self._log.warning("worker_end_failed", message=str(failure))

    def _infer(self, worker: WorkerApi) -> tuple[bytes, str | None]:
        """Steps 9 and 10: the request, repeated while the worker is busy, and its answer."""
        task, request = self._task, self._task.request
        if self._deadline is None:
            self._send_started(worker)
            self._deadline = time.monotonic() + request.timeout_seconds
        relay = InferenceRelay(
            worker.access.worker_id,
            request.timeout_seconds,
            self._deadline,
            self._timing.token_stall_timeout_s,
        )
        self._metrics.scheduling_ms.observe((time.monotonic() - task.arrived) * 1000)
        retry = 0
        while True:
            try:
                return self._generate(worker, relay)
            except AllSlotsBusy as busy:
                if retry >= request.busy_retries:
                    raise _with_retries(busy, retry) from None
            wait_s = busy_wait_s(retry, self._timing.busy_retry_delays_s)
            self._narrate("retry", busy_line(wait_s))
            left_s = self._deadline - time.monotonic()
            gevent.sleep(max(0.0, min(wait_s, left_s)))
            if wait_s >= left_s:
                raise RequestTimeout(request.timeout_seconds, 0)
            relay.restart_stall()
            retry += 1

    def _send_started(self, worker: WorkerApi) -> None:
        data = {
            "request_id": self._task.request_id,
            "node": self._task.node.node_name,
            "worker_id": worker.access.worker_id,
            "worker_url": worker.access.url,
            "model": self._task.model_ref,
        }
        self._send(encode_event(data, "started"))

    def _generate(self, worker: WorkerApi, relay: InferenceRelay) -> tuple[bytes, str | None]:
        self._metrics.connections.inc()
        try:
            with relay.limited():
                events = worker.infer(self._task.request.inference_body(self._task.request_id))
            with events:
                return relay.run(events, self._send)
        except AllSlotsBusy:
            raise
        except WorkerNotReady as error:
            raise self._leave(worker, error) from None
        except (InvalidApiKey, MissingApiKey):
            raise self._wrong_key(worker) from None
        except TransportFailure as failure:
            crashed = WorkerCrashed(worker.access.worker_id, relay.tokens)
            raise (self._leave(worker, crashed) if failure.kind == "refused" else crashed) from None
        except RbeeError:
            # The client learns of the failure at once; the worker is told beside that.
            spawn(self._send_cancel, worker)
            raise
        except gevent.GreenletExit as ended:
            # In a greenlet of its own: this one may be ended a second time while it waits.
            spawn(self._send_cancel, worker).join(self._timing.cancel_ack_timeout_s)
            if isinstance(ended, TaskCanceled):
                raise RequestCanceled(self._task.request_id, relay.tokens) from None
            raise
        finally:
            self._metrics.connections.dec()

    def _send_cancel(self, worker: WorkerApi) -> None:
        try:
            worker.cancel(self._task.request_id, self._timing.cancel_ack_timeout_s)
        except (TransportFailure, RbeeError) as failure:
            self._log.warning(
                "cancel_not_acknowledged", message=str(failure), worker_id=worker.access.worker_id
            )

    def _leave(self, worker: WorkerApi, error: RbeeError) -> _WorkerLeft:
        if error.details.get("state") != WorkerState.LOADING:
            self._left.add(worker.access.worker_id)
        self._known.forget(worker.access.worker_id)
        self._log.info("worker_left", message=error.message, worker_id=worker.access.worker_id)
        return _WorkerLeft(error)

    def _wrong_key(self, worker: WorkerApi) -> InvalidApiKey:
        """The next task asks the hive for the key again."""
        self._known.forget(worker.access.worker_id)
        return InvalidApiKey(self._task.node.ssh_host)


def provide_model(hive: HiveApi, model_ref: str, send: Send) -> str:
    """Have the hive fetch a model unless it is there; returns the path on the node.

    Raises:
        what the hive reports, e.g. ModelNotFound or DownloadFailed; BadHiveResponse.
    """
    with hive_answers(hive):
        download = hive.download(model_ref)
        if download.local_path is not None:
            return download.local_path
        with hive.download_progress(download.download_id) as events:
            return relay_download(hive, events, send)


def _with_retries(busy: AllSlotsBusy, retries: int) -> AllSlotsBusy:
    return AllSlotsBusy(
        int(busy.details.get("slots_total") or 1), int(busy.details.get("slots_busy") or 1), retries
    )


def _loading_error(worker: WorkerApi) -> RbeeError:
    progress = LoadingProgress()
    try:
        with gevent.Timeout(1.0, False), worker.loading_progress() as events:
            relay_loading(events, lambda _raw: None, progress)
    except (TransportFailure, RbeeError):
        pass
    return progress.error or WorkerStartFailed("loading the model failed")
