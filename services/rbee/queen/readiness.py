"""Finding or making the worker of a task: one that has the model, loaded and ready for a request."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    InvalidApiKey,
    LoadingTimeout,
    MissingApiKey,
    RbeeError,
    WorkerNotReady,
    WorkerStartFailed,
)
from rbee.core.lifecycle import WorkerState
from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet, Narrate
from rbee.queen.greenlets import spawn
from rbee.queen.known_workers import KnownWorkers
from rbee.queen.placement import Wanted, choose_worker
from rbee.queen.ports import HiveApi, WorkerApi
from rbee.queen.registry import Node
from rbee.queen.relay import (
    LoadingProgress,
    Send,
    hive_answers,
    relay_download,
    relay_loading,
    relay_startup,
)


class WorkerLeft(Exception):
    """The chosen worker is shutting down or gone; another one may serve."""

    def __init__(self, error: RbeeError) -> None:
        super().__init__(error.message)
        self.error = error


class WorkerFinder:
    """Steps 5 to 8 of one task.

    Args:
        send: where progress and narration of others go.
        narrate: where the queen's own words go.
        count: told how a worker was found: ``reused``, ``waited`` or ``spawned``.
    """

    def __init__(
        self,
        fleet: Fleet,
        known: KnownWorkers,
        timing: Timing,
        wanted: Wanted,
        send: Send,
        narrate: Narrate,
        count: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._known = known
        self._timing = timing
        self._wanted = wanted
        self._send = send
        self._narrate = narrate
        self._count = count
        self._log = get_logger("queen-rbee")
        self._left: set[str] = set()

    def find(self, node: Node, hive: HiveApi) -> WorkerApi:
        """A worker that has the model loaded.

        Raises:
            WorkerLeft: it began to shut down meanwhile.
            RbeeError: what keeps the hive from giving one; LoadingTimeout, WorkerStartFailed.
        """
        decisions = self._known.decisions
        worker, outcome = self._existing(hive)
        if worker is None:
            self._provide(node, hive)
            # Of tasks that need the same worker at the same time one spawns it, the others find it loading.
            with self._known.one_at_a_time(node, self._wanted):
                if self._known.decisions != decisions:
                    worker, outcome = self._existing(hive)
                if worker is None:
                    worker, outcome = self._spawn(hive), "spawned"
        if outcome != "reused":
            self._follow_startup(hive, worker)
            self._await_ready(hive, worker)
        self._count(outcome)
        return worker

    def leave(self, worker: WorkerApi, error: RbeeError) -> WorkerLeft:
        """Give a worker up; it is not chosen again unless it is only loading."""
        if error.details.get("state") != WorkerState.LOADING:
            self._left.add(worker.access.worker_id)
        self._known.forget(worker.access.worker_id)
        self._log.info("worker_left", message=error.message, worker_id=worker.access.worker_id)
        return WorkerLeft(error)

    def _existing(self, hive: HiveApi) -> tuple[WorkerApi | None, str]:
        """A worker the hive has, and whether it is ``reused`` or must be ``waited`` for."""
        wanted = self._wanted
        with hive_answers(hive):
            listed = hive.workers()
        chosen = choose_worker(listed, wanted.model_ref, wanted.backend, wanted.device, excluded=self._left)
        if chosen is None:
            return None, ""
        worker = self._fleet.peers.worker(self._known.access_to(hive, chosen))
        return worker, "waited" if chosen.state is WorkerState.LOADING else "reused"

    def _provide(self, node: Node, hive: HiveApi) -> None:
        """Step 6: preflight and model."""
        self._fleet.preflight(node, hive)
        self._narrate("preflight", f"rbee-hive on {node.node_name} is alive")
        provide_model(hive, self._wanted.model_ref, self._send)

    def _spawn(self, hive: HiveApi) -> WorkerApi:
        """Step 7 up to the hive's consent."""
        wanted = self._wanted
        with hive_answers(hive):
            access = self._known.learn(hive.spawn(wanted.model_ref, wanted.backend, wanted.device))
        self._log.info("worker_spawned", message="spawn accepted", worker_id=access.worker_id)
        return self._fleet.peers.worker(access)

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
            self._known.forget(worker.access.worker_id)
            raise InvalidApiKey(hive.host) from None
        state = str(body.get("state"))
        if body.get("ready") is True or state == WorkerState.BUSY:
            return None
        if state == WorkerState.ERROR:
            raise _loading_error(worker)
        if state == WorkerState.DRAINING:
            raise self.leave(worker, WorkerNotReady(state))
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


def _loading_error(worker: WorkerApi) -> RbeeError:
    progress = LoadingProgress()
    try:
        with gevent.Timeout(1.0, False), worker.loading_progress() as events:
            relay_loading(events, lambda _raw: None, progress)
    except (TransportFailure, RbeeError):
        pass
    return progress.error or WorkerStartFailed("loading the model failed")
