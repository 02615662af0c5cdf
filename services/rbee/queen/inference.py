"""One task from its node to its last token: reach the hive, find or make a worker, generate, relay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    AllSlotsBusy,
    GenerationTimeout,
    InvalidApiKey,
    MissingApiKey,
    NodeCordoned,
    NodeError,
    NodeNotFound,
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
from rbee.queen.fleet import Fleet
from rbee.queen.greenlets import spawn
from rbee.queen.known_workers import KnownWorkers, Served
from rbee.queen.metrics import Metrics
from rbee.queen.placement import Wanted
from rbee.queen.ports import Events, HiveApi, WorkerApi
from rbee.queen.readiness import WorkerFinder, WorkerLeft
from rbee.queen.registry import Node
from rbee.queen.relay import HiveLost, InferenceRelay, Send
from rbee.queen.retries import busy_line, busy_wait_s
from rbee.queen.scheduling import place
from rbee.queen.tasks import OpenTask, TaskCanceled

ACTOR = "queen-rbee"
_ACCEPT_S = 2.0
"""How long the worker of the last such task may take to accept; a worker that is well needs milliseconds."""


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

    def run(self, task: Task, send: Send, place: OpenTask) -> tuple[bytes, str | None]:
        """Do everything; returns the terminal event, not yet sent, and its error code if it has one.

        ``place`` is told on which node the task runs.

        Raises:
            RbeeError: the task failed before its worker sent a terminal event.
        """
        return _Run(task, send, place, self._fleet, self._known, self._timing, self._metrics).run()


class _Moved(Exception):
    """A task that waited for a busy worker goes to another node."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.node_name)
        self.node = node


class _Run:
    """One task under way."""

    def __init__(
        self,
        task: Task,
        send: Send,
        place: OpenTask,
        fleet: Fleet,
        known: KnownWorkers,
        timing: Timing,
        metrics: Metrics,
    ) -> None:
        self._task = task
        self._send = send
        self._place_taken = place
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
        """When ``timeout_seconds`` is over; set once a worker is asked."""
        self._is_told = False
        """Whether ``started`` was sent."""
        self._retry = 0
        self._may_move = task.node is None and len(fleet.nodes.all()) > 1
        """Until a worker has taken it; its client learns then who that is."""
        self._refusals: dict[str, AllSlotsBusy] = {}
        """Of a worker that was asked before its hive: the first of its busy answers."""
        self._failed: set[str] = set()
        """Nodes that could not serve the task after they had been chosen for it."""

    def run(self) -> tuple[bytes, str | None]:
        last = self._known.last_for(self._task.node, self._wanted)
        outcome = None if last is None else self._run_on(last)
        return outcome or self._run_through_hive()

    def _run_on(self, last: Served) -> tuple[bytes, str | None] | None:
        """Steps 9 and 10 with the worker of the last such task, whose consent makes all other steps needless.

        None when it does not take the task; nothing has been sent then.
        """
        if not self._fleet.is_compatible(last.version, self._version):
            return None
        try:
            node = self._fleet.nodes.find(last.node_name)
            self._enter(node)
        except (NodeNotFound, NodeCordoned):
            return None
        worker = self._fleet.peers.worker(last.access)
        with self._told_of_end(worker):
            events = self._ask(worker)
        if events is None:
            return None
        self._fleet.nodes.note_reachable(node)
        self._count("reused")
        if self._task.node is None and not node.builtin:
            self._narrate(
                "preflight", f"Placed on {node.node_name}: its worker carried out the last such task"
            )
        relay = self._begin(node, worker)
        return self._relay(node, worker, relay, events)

    def _ask(self, worker: WorkerApi) -> Events | None:
        """The worker's open answer, if it takes the task at once."""
        limit = gevent.Timeout(_ACCEPT_S)
        try:
            with limit:
                return worker.infer(self._body)
        except gevent.Timeout as fired:
            if fired is not limit:
                raise
            # The connection is closed by now, which ends what may have begun; a cancellation could come
            # late and end the next request of the same id.
        except AllSlotsBusy as busy:
            self._refusals[worker.access.worker_id] = busy
            return None
        except (RbeeError, TransportFailure) as refusal:
            self._log.info("worker_left", message=str(refusal), worker_id=worker.access.worker_id)
        self._known.forget(worker.access.worker_id)
        return None

    def _run_through_hive(self) -> tuple[bytes, str | None]:
        if self._task.node is not None:
            return self._run_at(self._enter(self._task.node))
        node = self._place()
        while True:
            try:
                return self._run_at(node)
            except _Moved as moved:
                node = moved.node
            except NodeError as error:
                # A node that has gone since it was looked at, such as one that is being restarted.
                self._failed.add(node.node_name)
                if self._is_told:
                    raise
                try:
                    node = self._place()
                except RbeeError:
                    raise error from None
                self._narrate("retry", f"{error.message}; left for {node.node_name}")

    def _run_at(self, node: Node) -> tuple[bytes, str | None]:
        hive = self._reach(node)
        try:
            return self._infer(node, self._finder.find(node, hive))
        except WorkerLeft as left:
            self._narrate("retry", f"{left}; looking for another worker")
        except HiveLost as lost:
            self._narrate("retry", f"{lost}; connecting once more")
            hive = self._reach(node)
        try:
            return self._infer(node, self._finder.find(node, hive))
        except WorkerLeft as left:
            raise left.error from None

    def _reach(self, node: Node) -> HiveApi:
        return self._fleet.reach(node, self._narrate, self._task.client_version)

    @property
    def _version(self) -> str:
        """The version of hive that this task needs."""
        return self._task.client_version or self._fleet.version

    def _enter(self, node: Node) -> Node:
        """Count as a task of this node from now on.

        Raises:
            NodeCordoned: it takes no new tasks, and this one does not ask for an exception.
        """
        if not self._task.request.ignore_cordon:
            self._fleet.nodes.cordons.refuse(node.node_name)
        self._place_taken.node_name = node.node_name
        return node

    def _place(self) -> Node:
        while True:
            node, reason = place(self._fleet, self._wanted, self._failed)
            try:
                self._enter(node)
            except NodeCordoned:
                # Cordoned while it was looked at: the next look leaves it out.
                if reason is None:
                    raise
                continue
            if reason is not None:
                self._narrate("preflight", f"Placed on {node.node_name}: {reason}")
            return node

    def _narrate(self, action: str, text: str) -> None:
        self._log.info("narration", message=text, action=action)
        self._send(encode_narration(ACTOR, action, text))

    def _count(self, outcome: str) -> None:
        self._metrics.dispatched.labels(outcome=outcome).inc()

    def _infer(self, node: Node, worker: WorkerApi) -> tuple[bytes, str | None]:
        """Steps 9 and 10: the request, repeated while the worker is busy, and its answer."""
        request = self._task.request
        relay = self._begin(node, worker)
        busy = self._refusals.pop(worker.access.worker_id, None)
        while True:
            if busy is None:
                try:
                    return self._generate(node, worker, relay)
                except AllSlotsBusy as refusal:
                    busy = refusal
            if self._retry >= request.busy_retries:
                raise _with_retries(busy, self._retry) from None
            wait_s = busy_wait_s(self._retry, self._timing.busy_retry_delays_s)
            self._narrate("retry", busy_line(wait_s))
            left_s = relay.deadline - time.monotonic()
            gevent.sleep(max(0.0, min(wait_s, left_s)))
            if wait_s >= left_s:
                raise RequestTimeout(request.timeout_seconds, 0)
            relay.restart_stall()
            self._retry, busy = self._retry + 1, None
            if self._may_move:
                self._look_elsewhere(node)

    def _look_elsewhere(self, node: Node) -> None:
        """Raises ``_Moved`` where another node serves the task better by now."""
        try:
            other, _ = place(self._fleet, self._wanted, self._failed)
            if other.node_name == node.node_name:
                return
            self._enter(other)
        except RbeeError:
            return
        self._narrate("retry", f"Moved to {other.node_name}: the worker on {node.node_name} is busy")
        raise _Moved(other)

    def _begin(self, node: Node, worker: WorkerApi) -> InferenceRelay:
        """Start the clock of ``timeout_seconds``, once; tell the client who serves it if that is certain."""
        if not self._may_move:
            self._tell_started(node, worker)
        if self._deadline is None:
            self._deadline = time.monotonic() + self._task.request.timeout_seconds
            self._metrics.scheduling_ms.observe((time.monotonic() - self._task.arrived) * 1000)
        return InferenceRelay(
            worker.access.worker_id,
            self._task.request.timeout_seconds,
            self._deadline,
            self._timing.token_stall_timeout_s,
        )

    def _tell_started(self, node: Node, worker: WorkerApi) -> None:
        if self._is_told:
            return
        self._is_told = True
        data = {
            "request_id": self._task.request_id,
            "node": node.node_name,
            "worker_id": worker.access.worker_id,
            "worker_url": worker.access.url,
            "model": self._task.model_ref,
        }
        self._send(encode_event(data, "started"))

    def _generate(self, node: Node, worker: WorkerApi, relay: InferenceRelay) -> tuple[bytes, str | None]:
        """One request to the worker.

        Raises:
            AllSlotsBusy; WorkerLeft: it is shutting down or gone; any other error ends the task.
        """
        with self._told_of_end(worker):
            try:
                with relay.limited():
                    events = worker.infer(self._body)
            except WorkerNotReady as error:
                raise self._finder.leave(worker, error) from None
            except (InvalidApiKey, MissingApiKey):
                # The next task asks the hive for the key again.
                self._known.forget(worker.access.worker_id)
                raise InvalidApiKey(node.ssh_host) from None
            except TransportFailure as failure:
                crashed = WorkerCrashed(worker.access.worker_id, 0)
                raise (
                    self._finder.leave(worker, crashed) if failure.kind == "refused" else crashed
                ) from None
        return self._relay(node, worker, relay, events)

    def _relay(
        self, node: Node, worker: WorkerApi, relay: InferenceRelay, events: Events
    ) -> tuple[bytes, str | None]:
        """The answer of a worker that has taken the task."""
        with self._metrics.connections.track_inprogress(), self._told_of_end(worker, relay), events:
            self._tell_started(node, worker)
            terminal = relay.run(events, self._send)
        version = self._fleet.version_of(node)
        self._known.note_served(node, self._wanted, worker.access.worker_id, version)
        return terminal

    @contextmanager
    def _told_of_end(self, worker: WorkerApi, relay: InferenceRelay | None = None) -> Iterator[None]:
        """A worker that may be generating is told when the task ends before its answer does."""
        try:
            yield
        except (GenerationTimeout, RequestTimeout):
            # The client learns of the failure at once; the worker is told beside that.
            spawn(self._send_cancel, worker)
            raise
        except gevent.GreenletExit as ended:
            # In a greenlet of its own: this one may be ended a second time while it waits.
            spawn(self._send_cancel, worker).join(self._timing.cancel_ack_timeout_s)
            if isinstance(ended, TaskCanceled):
                tokens = 0 if relay is None else relay.tokens
                raise RequestCanceled(self._task.request_id, tokens) from None
            raise

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
