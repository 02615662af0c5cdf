"""The request of one task to a worker: a slot for it, in turn with other tasks, and its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    AllSlotsBusy,
    GenerationTimeout,
    InvalidApiKey,
    MissingApiKey,
    RbeeError,
    RequestCanceled,
    RequestTimeout,
    WorkerCrashed,
    WorkerNotReady,
)
from rbee.core.events import encode_event
from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet, Narrate
from rbee.queen.greenlets import spawn
from rbee.queen.known_workers import KnownWorkers
from rbee.queen.metrics import Metrics
from rbee.queen.ports import Events, WorkerApi
from rbee.queen.readiness import WorkerLeft
from rbee.queen.registry import Node
from rbee.queen.relay import InferenceRelay, Sink
from rbee.queen.retries import busy_line, busy_wait_s
from rbee.queen.task import Task
from rbee.queen.tasks import TaskCanceled
from rbee.queen.waiting_line import Place, WaitingLine

_ACCEPT_S = 2.0
"""How long the worker of the last such task may take to accept; a worker that is well needs milliseconds."""
_LOOK_S = 1.0
"""How often the first in line asks without having been called: somebody else may have given a slot back."""


@dataclass(frozen=True)
class Workplace:
    """What the requests of all tasks share."""

    fleet: Fleet
    known: KnownWorkers
    line: WaitingLine
    timing: Timing
    metrics: Metrics


class WorkerRequest:
    """Steps 9 and 10 of one task; ``close`` when the task is over.

    Args:
        may_move: whether another node may still serve the task; its client learns later then who does.
        look_elsewhere: called with the node of a busy worker; raises where another node is better by now.
    """

    def __init__(
        self,
        task: Task,
        shared: Workplace,
        sink: Sink,
        narrate: Narrate,
        *,
        may_move: bool,
        look_elsewhere: Callable[[Node], None],
    ) -> None:
        self.is_told = False
        """Whether ``started`` was sent."""
        self._task = task
        self._shared = shared
        self._timing = shared.timing
        self._sink = sink
        self._send = sink.send
        self._narrate = narrate
        self._may_move = may_move
        self._look_elsewhere = look_elsewhere
        self._log = get_logger("queen-rbee").bind(request_id=task.request_id)
        self._body = task.request.inference_body(task.request_id)
        self._deadline: float | None = None
        """When ``timeout_seconds`` is over; set once a worker is asked."""
        self._retry = 0
        self._place: Place | None = None
        self._told_position: tuple[int, int] | None = None
        self._line_deadline = 0.0
        self._refusals: dict[str, _Refusal] = {}
        """Of a worker that was asked before its hive: the first of its busy answers."""

    def close(self) -> None:
        """Leave the line, if the task is still in it."""
        place, self._place = self._place, None
        if place is not None:
            self._shared.line.leave(place)

    def is_overtaking(self) -> bool:
        """Whether asking a worker now would be unfair to tasks that wait already."""
        return self._place is None and self._shared.line.has(self._task.wanted, self._task.node_name)

    def ask(self, worker: WorkerApi) -> Events | None:
        """The worker's open answer, if it takes the task at once; ``relay`` follows."""
        limit = gevent.Timeout(_ACCEPT_S)
        with self._told_of_end(worker):
            try:
                with limit:
                    return self._ask(worker)
            except gevent.Timeout as fired:
                if fired is not limit:
                    raise
                # The connection is closed by now, which ends what may have begun; a cancellation could come
                # late and end the next request of the same id.
            except _Refusal as refusal:
                self._refusals[worker.access.worker_id] = refusal
                return None
            except (RbeeError, TransportFailure) as failure:
                self._log.info("worker_left", message=str(failure), worker_id=worker.access.worker_id)
        self._shared.known.forget(worker.access.worker_id)
        return None

    def answer(self, node: Node, worker: WorkerApi, events: Events) -> tuple[bytes, str | None]:
        """The rest of a task whose worker has taken it."""
        return self._relay(node, worker, self._begin(node, worker), events)

    def infer(
        self, node: Node, worker: WorkerApi, leave: Callable[[WorkerApi, RbeeError], WorkerLeft]
    ) -> tuple[bytes, str | None]:
        """The request, repeated in its turn while the worker is busy, and its answer.

        Args:
            leave: gives the worker up.

        Raises:
            WorkerLeft: it is shutting down or gone; AllSlotsBusy; any other error ends the task.
        """
        relay = self._begin(node, worker)
        refusal = self._refusals.pop(worker.access.worker_id, None)
        while True:
            if refusal is None and not self.is_overtaking():
                try:
                    return self._generate(node, worker, relay, leave)
                except _Refusal as refused:
                    refusal = refused
            self._await_turn(worker, relay, refusal)
            relay.restart_stall()
            refusal = None
            if self._may_move:
                self._look_elsewhere(node)

    def _await_turn(self, worker: WorkerApi, relay: InferenceRelay, refusal: _Refusal | None) -> None:
        """Wait in line until the worker should be asked (again).

        When tasks of this queen hold its slots, the queen sees their end. When others do, it can only ask,
        as often as the request allows; what was refused because of tasks that have ended is not counted.

        Raises:
            AllSlotsBusy: it was asked often enough, or the wait in line has become too long.
            RequestTimeout
        """
        line, task = self._shared.line, self._task
        if self._place is None:
            self._place = line.join(task.wanted, task.node_name)
            self._line_deadline = time.monotonic() + self._timing.queue_wait_s
        while True:
            position, _ = line.position(self._place)
            if position > 1 or line.is_served_by(worker.access.worker_id):
                self._tell_position()
                self._pause(_LOOK_S if position == 1 else self._timing.queue_wait_s, relay, refusal)
                if line.position(self._place)[0] == 1:
                    return
                continue
            if refusal is not None and not refusal.may_be_out_of_date:
                if self._retry >= task.request.busy_retries:
                    raise _with_retries(refusal.busy, self._retry) from None
                wait_s = busy_wait_s(self._retry, self._timing.busy_retry_delays_s)
                self._narrate("retry", busy_line(wait_s))
                self._retry += 1
                self._pause(wait_s, relay, refusal)
            return

    def _pause(self, seconds: float, relay: InferenceRelay, refusal: _Refusal | None) -> None:
        """Wait for a call, at most so long."""
        place = self._place
        assert place is not None  # noqa: S101 (only those in line pause)
        until = min(relay.deadline, self._line_deadline)
        place.called.wait(max(0.0, min(seconds, until - time.monotonic())))
        place.called.clear()
        if time.monotonic() >= relay.deadline:
            raise RequestTimeout(self._task.request.timeout_seconds, 0)
        if time.monotonic() >= self._line_deadline:
            raise _with_retries(AllSlotsBusy(1, 1) if refusal is None else refusal.busy, self._retry)

    def _tell_position(self) -> None:
        assert self._place is not None  # noqa: S101 (see above)
        position, waiting = told = self._shared.line.position(self._place)
        if told == self._told_position:
            return
        if self._told_position is None or self._told_position[0] != position:
            self._narrate("queued", f"Waiting for a free slot: position {position} of {waiting}")
        self._told_position = told
        self._send(encode_event({"position": position, "waiting": waiting}, "queued"))

    def _begin(self, node: Node, worker: WorkerApi) -> InferenceRelay:
        """Start the clock of ``timeout_seconds``, once; tell the client who serves it if that is certain."""
        if not self._may_move:
            self._tell_started(node, worker)
        task = self._task
        if self._deadline is None:
            self._deadline = time.monotonic() + task.request.timeout_seconds
            self._shared.metrics.scheduling_ms.observe((time.monotonic() - task.arrived) * 1000)
        return InferenceRelay(
            worker.access.worker_id,
            task.request.timeout_seconds,
            self._deadline,
            self._timing.token_stall_timeout_s,
        )

    def _tell_started(self, node: Node, worker: WorkerApi) -> None:
        if self.is_told:
            return
        self.is_told = True
        data = {
            "request_id": self._task.request_id,
            "node": node.node_name,
            "worker_id": worker.access.worker_id,
            "worker_url": worker.access.url,
            "model": self._task.model_ref,
        }
        self._send(encode_event(data, "started"))

    def _generate(
        self,
        node: Node,
        worker: WorkerApi,
        relay: InferenceRelay,
        leave: Callable[[WorkerApi, RbeeError], WorkerLeft],
    ) -> tuple[bytes, str | None]:
        """One request to the worker.

        Raises:
            _Refusal; WorkerLeft: it is shutting down or gone; any other error ends the task.
        """
        with self._told_of_end(worker):
            try:
                with relay.limited():
                    events = self._ask(worker)
            except WorkerNotReady as error:
                raise leave(worker, error) from None
            except (InvalidApiKey, MissingApiKey):
                # The next task asks the hive for the key again.
                self._shared.known.forget(worker.access.worker_id)
                raise InvalidApiKey(node.ssh_host) from None
            except TransportFailure as failure:
                crashed = WorkerCrashed(worker.access.worker_id, 0)
                raise (leave(worker, crashed) if failure.kind == "refused" else crashed) from None
        return self._relay(node, worker, relay, events)

    def _ask(self, worker: WorkerApi) -> Events:
        """The worker's open answer.

        Raises:
            _Refusal: all its slots are busy; what ``WorkerApi.infer`` raises.
        """
        asking = self._shared.line.asking(worker.access.worker_id)
        try:
            with asking:
                return worker.infer(self._body)
        except AllSlotsBusy as busy:
            raise _Refusal(busy, may_be_out_of_date=asking.was_beside_others) from None

    def _relay(
        self, node: Node, worker: WorkerApi, relay: InferenceRelay, events: Events
    ) -> tuple[bytes, str | None]:
        """The answer of a worker that has taken the task."""
        shared, worker_id = self._shared, worker.access.worker_id
        with (
            shared.line.serving(worker_id, self._task.model_ref),
            shared.metrics.connections.track_inprogress(),
            self._told_of_end(worker, relay),
            events,
        ):
            # Who is next in line may find another slot free.
            self.close()
            self._tell_started(node, worker)
            terminal = relay.run(events, self._sink)
        shared.known.note_served(node, self._task.wanted, worker_id, shared.fleet.version_of(node))
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


class _Refusal(Exception):
    """All slots of a worker were busy when it was asked."""

    def __init__(self, busy: AllSlotsBusy, *, may_be_out_of_date: bool) -> None:
        super().__init__(busy.message)
        self.busy = busy
        self.may_be_out_of_date = may_be_out_of_date
        """Whether they were, or may have been, held by tasks of this queen."""


def _with_retries(busy: AllSlotsBusy, retries: int) -> AllSlotsBusy:
    return AllSlotsBusy(
        int(busy.details.get("slots_total") or 1), int(busy.details.get("slots_busy") or 1), retries
    )
