"""One task from its node to its last token: reach the hive, find or make a worker, have it generate."""

from __future__ import annotations

from rbee.core.errors import NodeCordoned, NodeError, NodeNotFound, RbeeError
from rbee.core.events import encode_narration
from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet
from rbee.queen.known_workers import KnownWorkers, Served
from rbee.queen.metrics import Metrics
from rbee.queen.ports import HiveApi
from rbee.queen.readiness import WorkerFinder, WorkerLeft
from rbee.queen.registry import Node
from rbee.queen.relay import HiveLost, Sink
from rbee.queen.scheduling import Scheduler
from rbee.queen.task import Task
from rbee.queen.tasks import OpenTask
from rbee.queen.waiting_line import WaitingLine
from rbee.queen.worker_request import WorkerRequest, Workplace

ACTOR = "queen-rbee"


class TaskFlow:
    """Carries out tasks; one instance serves all of them."""

    def __init__(
        self, fleet: Fleet, scheduler: Scheduler, known: KnownWorkers, timing: Timing, metrics: Metrics
    ) -> None:
        self._shared = Workplace(fleet, known, WaitingLine(), timing, metrics)
        self._scheduler = scheduler

    def run(self, task: Task, sink: Sink, place: OpenTask) -> tuple[bytes, str | None]:
        """Do everything; returns the terminal event, not yet sent, and its error code if it has one.

        ``place`` is told on which node the task runs.

        Raises:
            RbeeError: the task failed before its worker sent a terminal event.
        """
        return _Run(task, sink, place, self._shared, self._scheduler).run()


class _Moved(Exception):
    """A task that waited for a busy worker goes to another node."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.node_name)
        self.node = node


class _Run:
    """One task under way."""

    def __init__(
        self, task: Task, sink: Sink, place: OpenTask, shared: Workplace, scheduler: Scheduler
    ) -> None:
        self._task = task
        self._send = sink.send
        self._place_taken = place
        self._fleet = fleet = shared.fleet
        self._scheduler = scheduler
        self._known = shared.known
        self._metrics = shared.metrics
        self._log = get_logger(ACTOR).bind(request_id=task.request_id)
        self._wanted = task.wanted
        self._finder = WorkerFinder(
            fleet, shared.known, shared.timing, self._wanted, sink.send, self._narrate, self._count
        )
        self._request = WorkerRequest(
            task,
            shared,
            sink,
            self._narrate,
            may_move=task.node is None and len(fleet.nodes.all()) > 1,
            look_elsewhere=self._look_elsewhere,
        )
        self._failed: set[str] = set()
        """Nodes that could not serve the task after they had been chosen for it."""

    def run(self) -> tuple[bytes, str | None]:
        try:
            last = self._known.last_for(self._task.node, self._wanted)
            outcome = None if last is None or self._request.is_overtaking() else self._run_on(last)
            return outcome or self._run_through_hive()
        finally:
            self._request.close()
            # They hold methods of this one, and all of a task would wait for the next look for cycles.
            del self._request, self._finder

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
        events = self._request.ask(worker)
        if events is None:
            return None
        self._fleet.nodes.note_reachable(node)
        self._count("reused")
        if self._task.node is None and not node.builtin:
            self._narrate(
                "preflight", f"Placed on {node.node_name}: its worker carried out the last such task"
            )
        return self._request.answer(node, worker, events)

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
                if self._request.is_told:
                    raise
                try:
                    node = self._place()
                except RbeeError:
                    raise error from None
                self._narrate("retry", f"{error.message}; left for {node.node_name}")

    def _run_at(self, node: Node) -> tuple[bytes, str | None]:
        hive = self._reach(node)
        try:
            return self._infer(node, hive)
        except WorkerLeft as left:
            self._narrate("retry", f"{left}; looking for another worker")
        except HiveLost as lost:
            self._narrate("retry", f"{lost}; connecting once more")
            hive = self._reach(node)
        try:
            return self._infer(node, hive)
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
            with self._metrics.placement_seconds.time():
                node, reason = self._scheduler.place(self._wanted, self._failed)
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

    def _infer(self, node: Node, hive: HiveApi) -> tuple[bytes, str | None]:
        return self._request.infer(node, self._finder.find(node, hive), self._finder.leave)

    def _look_elsewhere(self, node: Node) -> None:
        """Raises ``_Moved`` where another node serves the task better by now."""
        try:
            other, _ = self._scheduler.place(self._wanted, self._failed)
            if other.node_name == node.node_name:
                return
            self._enter(other)
        except RbeeError:
            return
        self._narrate("retry", f"Moved to {other.node_name}: the worker on {node.node_name} is busy")
        raise _Moved(other)
