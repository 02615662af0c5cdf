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
from rbee.queen.early import EarlyRequest
from rbee.queen.fleet import Fleet, Narrate
from rbee.queen.greenlets import spawn
from rbee.queen.placement import Wanted, choose_worker
from rbee.queen.ports import HiveApi, WorkerAccess, WorkerApi, WorkerRecord
from rbee.queen.registry import Node
from rbee.queen.relay import (
    LoadingProgress,
    Send,
    hive_answers,
    relay_download,
    relay_loading,
    relay_startup,
)

_KEYS_KEPT = 1024
_LAST_KEPT = 256


class WorkerLeft(Exception):
    """The chosen worker is shutting down or gone; another one may serve."""

    def __init__(self, error: RbeeError) -> None:
        super().__init__(error.message)
        self.error = error


class KnownWorkers:
    """Keys of workers this queen spawned or asked for; in memory only."""

    def __init__(self) -> None:
        self._access: dict[str, WorkerAccess] = {}
        self._last: dict[tuple[str, Wanted], str] = {}

    def learn(self, access: WorkerAccess) -> WorkerAccess:
        while len(self._access) >= _KEYS_KEPT:
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

    def note_served(self, node: Node, wanted: Wanted, worker_id: str) -> None:
        """This worker has just carried out such a task."""
        while len(self._last) >= _LAST_KEPT:
            self._last.pop(next(iter(self._last)))
        self._last[(node.node_name, wanted)] = worker_id

    def last_for(self, node: Node, wanted: Wanted) -> WorkerAccess | None:
        """The worker that carried out the last such task on the node, unless it is known to be gone."""
        return self._access.get(self._last.get((node.node_name, wanted), ""))

    def forget(self, worker_id: str) -> None:
        self._access.pop(worker_id, None)


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

    def find(self, node: Node, hive: HiveApi, early: EarlyRequest | None = None) -> WorkerApi:
        """A worker that has the model loaded.

        Args:
            early: a request that one of the workers has been sent already; that one is preferred.

        Raises:
            WorkerLeft: it began to shut down meanwhile.
            RbeeError: what keeps the hive from giving one; LoadingTimeout, WorkerStartFailed.
        """
        wanted = self._wanted
        with hive_answers(hive):
            listed = hive.workers()
        chosen = choose_worker(
            listed,
            wanted.model_ref,
            wanted.backend,
            wanted.device,
            excluded=self._left,
            # The hive may see that worker busy, with this very request.
            serving=early.access.worker_id if early is not None and not early.is_refused else None,
        )
        if chosen is None:
            worker, outcome = self._spawn(node, hive), "spawned"
        else:
            worker = self._fleet.peers.worker(self._known.access_to(hive, chosen))
            outcome = "reused"
            if chosen.state is WorkerState.LOADING:
                outcome = "waited"
                self._follow_startup(hive, worker)
        if outcome != "reused":
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

    def _spawn(self, node: Node, hive: HiveApi) -> WorkerApi:
        """Steps 6 and 7: preflight, model, worker."""
        wanted = self._wanted
        self._fleet.preflight(node, hive)
        self._narrate("preflight", f"rbee-hive on {node.node_name} is alive")
        provide_model(hive, wanted.model_ref, self._send)
        with hive_answers(hive):
            access = self._known.learn(hive.spawn(wanted.model_ref, wanted.backend, wanted.device))
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
