"""One task from its node to its last token: reach the hive, find or make a worker, generate, relay."""

from __future__ import annotations

import time
from dataclasses import dataclass

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    AllSlotsBusy,
    InvalidApiKey,
    MissingApiKey,
    RbeeError,
    RequestCanceled,
    RequestTimeout,
    WorkerCrashed,
    WorkerNotReady,
)
from rbee.core.events import encode_event, encode_narration
from rbee.core.logs import get_logger
from rbee.core.schemas import TaskRequest
from rbee.core.settings import Timing
from rbee.queen.early import EarlyRequest
from rbee.queen.fleet import Fleet
from rbee.queen.greenlets import spawn
from rbee.queen.known_workers import KnownWorkers
from rbee.queen.metrics import Metrics
from rbee.queen.placement import Wanted
from rbee.queen.ports import WorkerApi
from rbee.queen.readiness import WorkerFinder, WorkerLeft
from rbee.queen.registry import Node
from rbee.queen.relay import InferenceRelay, Send
from rbee.queen.retries import busy_line, busy_wait_s
from rbee.queen.scheduling import place
from rbee.queen.tasks import TaskCanceled

ACTOR = "queen-rbee"


@dataclass(frozen=True)
class Task:
    """What a client asked for, with everything decided that needs no hive."""

    request_id: str
    node: Node | None
    """None: the queen chooses one."""
    model_ref: str
    request: TaskRequest
    client_version: str | None
    arrived: float
    """On the monotonic clock."""


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
        self._log = get_logger(ACTOR).bind(request_id=task.request_id)
        wanted = Wanted(task.model_ref, task.request.backend, task.request.device)
        self._wanted = wanted
        self._body = task.request.inference_body(task.request_id)
        self._finder = WorkerFinder(fleet, known, timing, wanted, send, self._narrate, self._count)
        self._deadline: float | None = None
        """When ``timeout_seconds`` is over; set once ``started`` was sent."""

    def run(self) -> tuple[bytes, str | None]:
        node = self._task.node or self._place()
        early = self._send_early(node)
        try:
            hive = self._fleet.reach(node, self._narrate, self._task.client_version)
            worker = self._finder.find(node, hive, early)
        except BaseException:
            if early is not None:
                early.abandon()
            raise
        if early is not None and early.access != worker.access:
            early.abandon()
            early = None
        try:
            return self._infer(node, worker, early)
        except WorkerLeft as left:
            self._narrate("retry", f"{left}; looking for another worker")
        try:
            return self._infer(node, self._finder.find(node, hive), None)
        except WorkerLeft as left:
            raise left.error from None

    def _send_early(self, node: Node) -> EarlyRequest | None:
        access = self._known.last_for(node, self._wanted)
        if access is None:
            return None
        worker = self._fleet.peers.worker(access)
        return EarlyRequest(worker, self._body, self._timing.cancel_ack_timeout_s)

    def _place(self) -> Node:
        node, reason = place(self._fleet, self._wanted)
        if reason is not None:
            self._narrate("preflight", f"Placed on {node.node_name}: {reason}")
        return node

    def _narrate(self, action: str, text: str) -> None:
        self._log.info("narration", message=text, action=action)
        self._send(encode_narration(ACTOR, action, text))

    def _count(self, outcome: str) -> None:
        self._metrics.dispatched.labels(outcome=outcome).inc()

    def _infer(self, node: Node, worker: WorkerApi, early: EarlyRequest | None) -> tuple[bytes, str | None]:
        """Steps 9 and 10: the request, repeated while the worker is busy, and its answer."""
        task, request = self._task, self._task.request
        if self._deadline is None:
            self._send_started(node, worker)
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
                return self._generate(node, worker, relay, early)
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
            retry, early = retry + 1, None

    def _send_started(self, node: Node, worker: WorkerApi) -> None:
        data = {
            "request_id": self._task.request_id,
            "node": node.node_name,
            "worker_id": worker.access.worker_id,
            "worker_url": worker.access.url,
            "model": self._task.model_ref,
        }
        self._send(encode_event(data, "started"))

    def _generate(
        self, node: Node, worker: WorkerApi, relay: InferenceRelay, early: EarlyRequest | None
    ) -> tuple[bytes, str | None]:
        self._metrics.connections.inc()
        try:
            with relay.limited():
                events = worker.infer(self._body) if early is None else early.take()
            with events:
                terminal = relay.run(events, self._send)
            self._known.note_served(node, self._wanted, worker.access.worker_id)
            return terminal
        except AllSlotsBusy:
            raise
        except WorkerNotReady as error:
            raise self._finder.leave(worker, error) from None
        except (InvalidApiKey, MissingApiKey):
            # The next task asks the hive for the key again.
            self._known.forget(worker.access.worker_id)
            raise InvalidApiKey(node.ssh_host) from None
        except TransportFailure as failure:
            crashed = WorkerCrashed(worker.access.worker_id, relay.tokens)
            raise (self._finder.leave(worker, crashed) if failure.kind == "refused" else crashed) from None
        except RbeeError:
            # The client learns of the failure at once; the worker is told beside that.
            self._stop(worker, early)
            raise
        except gevent.GreenletExit as ended:
            # In a greenlet of its own: this one may be ended a second time while it waits.
            self._stop(worker, early).join(self._timing.cancel_ack_timeout_s)
            if isinstance(ended, TaskCanceled):
                raise RequestCanceled(self._task.request_id, relay.tokens) from None
            raise
        finally:
            self._metrics.connections.dec()

    def _stop(self, worker: WorkerApi, early: EarlyRequest | None) -> gevent.Greenlet:
        """Tell the worker to stop; join the result to wait until it has said that it did."""
        return early.abandon() if early is not None else spawn(self._send_cancel, worker)

    def _send_cancel(self, worker: WorkerApi) -> None:
        try:
            worker.cancel(self._task.request_id, self._timing.cancel_ack_timeout_s)
        except (TransportFailure, RbeeError) as failure:
            self._log.warning(
                "cancel_not_acknowledged", message=str(failure), worker_id=worker.access.worker_id
            )


def _with_retries(busy: AllSlotsBusy, retries: int) -> AllSlotsBusy:
    return AllSlotsBusy(
        int(busy.details.get("slots_total") or 1), int(busy.details.get("slots_busy") or 1), retries
    )
