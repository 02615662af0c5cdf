"""What goes on in the fleet right now, asked from the hives and workers themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import (
    BadHiveResponse,
    ConnectionTimeout,
    InvalidApiKey,
    RbeeError,
    WorkerNotFound,
)
from rbee.core.lifecycle import WorkerState
from rbee.queen.fleet import Fleet
from rbee.queen.greenlets import spawn
from rbee.queen.ports import WorkerAccess, WorkerRecord
from rbee.queen.registry import Contact, Node

LIST_TIMEOUT_S = 5.0
"""Each hive has this long to answer."""
STATUS_TIMEOUT_S = 2.0
"""The same where only the status is asked: a list of nodes must not take long because one is down."""


@dataclass
class Found:
    """Workers with their nodes, and the nodes that could not be asked."""

    workers: list[tuple[Node, WorkerRecord]] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Probe:
    """What one worker answered, or what its hive knows where it did not answer."""

    worker_id: str
    state: WorkerState

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.IDLE


def refresh_status(fleet: Fleet) -> None:
    """Ask every node's hive, in parallel and briefly, so that the registry shows what is true now."""
    asked = [spawn(_contact, fleet, node) for node in fleet.nodes.all()]
    gevent.joinall(asked)
    fleet.nodes.note(each.get() for each in asked)


def list_workers(fleet: Fleet) -> Found:
    """The workers of all nodes, hives asked in parallel; starts none."""
    nodes = fleet.nodes.all()
    answers = [spawn(_workers_or_none, fleet, node) for node in nodes]
    found = Found()
    for node, answer in zip(nodes, answers, strict=True):
        records = answer.get()
        if records is None:
            found.unreachable.append(node.node_name)
        else:
            found.workers += [(node, record) for record in records]
    return found


def as_listed(node: Node, record: WorkerRecord) -> dict[str, Any]:
    """One worker as ``/v2/workers/list`` shows it."""
    return {
        "worker_id": record.worker_id,
        "node": node.node_name,
        "state": record.state,
        "model_ref": record.model_ref,
        "url": record.url,
        "backend": record.backend,
        "device": record.device,
        "slots_total": record.slots_total,
        "slots_available": record.slots_available,
    }


def probe_workers(fleet: Fleet, node: Node, timeout_s: float) -> list[Probe]:
    """The state of each worker of a node, asked from the worker; none where no hive runs.

    Raises:
        ConnectionTimeout, BadHiveResponse, InvalidApiKey
    """
    probes = [spawn(_probe, fleet, record, timeout_s) for record in workers_of(fleet, node)]
    return [probe.get() for probe in probes]


def workers_of(fleet: Fleet, node: Node) -> list[WorkerRecord]:
    """What the node's hive lists; nothing where no hive runs.

    Raises:
        ConnectionTimeout, BadHiveResponse, InvalidApiKey
    """
    hive = fleet.look(node, LIST_TIMEOUT_S)
    if hive is None:
        return []
    try:
        return hive.workers(LIST_TIMEOUT_S)
    except TransportFailure:
        raise ConnectionTimeout(node.ssh_host, node.hive_port, 1, LIST_TIMEOUT_S, node.node_name) from None


def end_worker(fleet: Fleet, worker_id: str) -> None:
    """Have the worker's hive end it gracefully.

    Raises:
        WorkerNotFound: no reachable hive knows it.
    """
    for node, record in list_workers(fleet).workers:
        if record.worker_id == worker_id:
            try:
                fleet.peers.hive(node).end_worker(worker_id)
            except TransportFailure:
                raise ConnectionTimeout(
                    node.ssh_host, node.hive_port, 1, LIST_TIMEOUT_S, node.node_name
                ) from None
            return
    raise WorkerNotFound(worker_id)


def _contact(fleet: Fleet, node: Node) -> Contact | None:
    try:
        hive = fleet.look(node, STATUS_TIMEOUT_S)
    except (InvalidApiKey, BadHiveResponse):
        return fleet.nodes.answering(node)
    except RbeeError as error:
        return fleet.nodes.missed(node, error.message)
    return fleet.nodes.answering(node) if hive is None else fleet.nodes.reached(node)


def _workers_or_none(fleet: Fleet, node: Node) -> list[WorkerRecord] | None:
    try:
        return workers_of(fleet, node)
    except RbeeError:
        return None


def _probe(fleet: Fleet, record: WorkerRecord, timeout_s: float) -> Probe:
    worker = fleet.peers.worker(WorkerAccess(record.worker_id, record.url, None))
    try:
        return Probe(record.worker_id, worker.probe(timeout_s))
    except (TransportFailure, RbeeError):
        silent = record.state in (WorkerState.IDLE, WorkerState.BUSY)
        return Probe(record.worker_id, WorkerState.UNHEALTHY if silent else record.state)
