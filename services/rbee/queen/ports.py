"""What the queen needs from the outside, as protocols: hives, workers, hive processes, the node store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rbee.core.events import Event
from rbee.core.lifecycle import WorkerState

if TYPE_CHECKING:
    from rbee.queen.cordons import Cordon, Rollout
    from rbee.queen.registry import Contact, Node


@dataclass(frozen=True)
class HiveHealth:
    """What a hive says of itself."""

    status: str
    version: str
    owner: str | None
    pid: int | None


@dataclass(frozen=True)
class WorkerRecord:
    """A worker as its hive lists it."""

    worker_id: str
    url: str
    model_ref: str
    backend: str
    device: int
    state: WorkerState
    slots_total: int
    slots_available: int


@dataclass(frozen=True)
class WorkerAccess:
    """Where a worker is and the key it accepts."""

    worker_id: str
    url: str
    api_key: str | None


@dataclass(frozen=True)
class Download:
    """A transfer on a hive; ``local_path`` is None while it runs."""

    download_id: str
    local_path: str | None


@dataclass(frozen=True)
class Capabilities:
    """What a node has and what of it is free now; memory and disk in MB."""

    backends: Sequence[str]
    devices: Mapping[str, int]
    ram_available_mb: int
    vram_available_mb: Mapping[int, int]
    disk_available_mb: int
    model_sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the models on the node by reference; told by ``rbee-hive detect`` only."""

    def free_mb(self, backend: str) -> dict[int, int]:
        """Free memory by device index."""
        if backend == "cpu":
            return dict.fromkeys(range(self.devices.get(backend, 1)), self.ram_available_mb)
        return {index: self.vram_available_mb.get(index, 0) for index in range(self.devices.get(backend, 0))}


class Events(AbstractContextManager["Events"], Protocol):
    """An open event stream."""

    headers: Mapping[str, str]

    def __iter__(self) -> Iterator[Event]: ...

    def next_block(self) -> bytes:
        """The bytes of one or more whole events, empty at the end; an interrupted call may be repeated."""

    def follow(self, accept: Callable[[bytes], bool]) -> bytes:
        """Give blocks to ``accept``, which must not block; the first that it does not take, or the end."""

    def close(self) -> None: ...


class HiveApi(Protocol):
    """One hive. Every call raises ``RbeeError`` (an answer) or ``TransportFailure`` (no usable answer)."""

    host: str
    port: int

    def health(self, timeout_s: float) -> HiveHealth:
        """Raises ``NotAHive`` when something else answers."""

    def workers(self, timeout_s: float | None = None) -> list[WorkerRecord]: ...

    def spawn(self, model_ref: str, backend: str | None, device: int | None) -> WorkerAccess: ...

    def access(self, worker_id: str) -> WorkerAccess:
        """Address and key of a live worker; starts none."""

    def narration(self, worker_id: str) -> Events: ...

    def end_worker(self, worker_id: str) -> None: ...

    def download(self, model_ref: str) -> Download: ...

    def download_progress(self, download_id: str) -> Events: ...

    def capabilities(self) -> Capabilities: ...

    def models(self) -> list[dict[str, Any]]: ...

    def model(self, model_ref: str) -> dict[str, Any]:
        """All that the hive knows of one model of its catalog."""

    def verify_models(self, model_ref: str | None) -> Events:
        """Progress and verdicts on one model, or on all."""

    def prune_models(self, unused_for_days: float | None, dry_run: bool) -> dict[str, Any]: ...

    def remove_model(self, model_ref: str) -> None: ...

    def measure_quality(self, model_ref: str) -> Events:
        """Progress of a comparison of a model's conversion with float32, and its figures."""

    def logs(self, follow: bool, lines: int, worker_id: str | None) -> Events: ...

    def renew_lease(self, owner: str, ttl_s: float) -> None: ...


class WorkerApi(Protocol):
    """One worker. Calls raise as ``HiveApi`` does."""

    access: WorkerAccess

    def ready(self, timeout_s: float) -> dict[str, Any]: ...

    def probe(self, timeout_s: float) -> WorkerState:
        """The state it reports on its public health endpoint."""

    def loading_progress(self) -> Events: ...

    def infer(self, body: Mapping[str, Any]) -> Events: ...

    def cancel(self, request_id: str, timeout_s: float) -> None: ...


class Peers(Protocol):
    """Opens connections to hives and workers, and keeps them open between requests."""

    def hive(self, node: Node) -> HiveApi:
        """Raises ``TransportFailure`` when the node's transport cannot even name an address."""

    def worker(self, access: WorkerAccess) -> WorkerApi: ...

    def drop_gone(self) -> None:
        """Let go of what is kept open to workers that have ended."""


@dataclass(frozen=True)
class HiveProcess:
    """A hive that was started: where it listens and which process to signal (None: not known yet)."""

    port: int
    pid: int | None


class HiveLauncher(Protocol):
    """Starts and signals hive processes of one kind of node."""

    def start(self, node: Node, port: int) -> HiveProcess:
        """Start a hive on ``port``, or on a free one where the launcher may choose; it need not listen yet.

        Raises:
            HiveStartFailed, SshConnectionFailed
        """

    def pause(self, node: Node, timeout_s: float) -> None:
        """Wait ``timeout_s``, less when there is news of the start."""

    def failure(self, node: Node) -> str | None:
        """Why the hive started last has ended, or None while it runs (or nothing is known)."""

    def detect(self, node: Node) -> Capabilities:
        """What the node has, found out without a hive.

        Raises:
            HiveStartFailed, SshConnectionFailed, BadHiveResponse
        """

    def signal(self, node: Node, pid: int, number: int) -> None:
        """Deliver a signal; a process that is gone is no error.

        Raises:
            SshConnectionFailed: the node cannot be reached.
        """

    def wait_gone(self, node: Node, pid: int, timeout_s: float) -> bool:
        """Whether the process is gone, after waiting at most ``timeout_s`` for its end.

        Raises:
            SshConnectionFailed: the node cannot be reached.
        """


class CordonStore(Protocol):
    """Cordons and the roll-out on disk. Raises ``ServiceUnavailable`` when the database cannot be used."""

    def cordons(self) -> list[Cordon]: ...

    def set_cordon(self, cordon: Cordon) -> None: ...

    def lift_cordon(self, node_name: str) -> None: ...

    def rollout(self) -> Rollout | None: ...

    def set_rollout(self, rollout: Rollout | None) -> None: ...


class NodeStore(CordonStore, Protocol):
    """Registered nodes on disk. Raises ``ServiceUnavailable`` when the database cannot be used."""

    def get(self, name: str) -> Node | None: ...

    def all(self) -> list[Node]: ...

    def add(self, node: Node) -> None: ...

    def replace(self, node: Node) -> bool: ...

    def remove(self, name: str) -> bool: ...

    def note_contacts(self, contacts: Sequence[Contact]) -> None:
        """Write outcomes of contacts at once; nodes that are not registered any more are left out."""

    def close(self) -> None: ...


class NotAHive(Exception):
    """Something that is no hive answered at a hive's address."""


@dataclass(frozen=True)
class Completed:
    """A command that ran on a node to its end."""

    exit_code: int
    stdout: str
    stderr: str


class NodeTransport(Protocol):
    """The way to a node's shell."""

    def address(self, node: Node) -> str:
        """The address under which services on the node are reached.

        Raises:
            TransportFailure: the transport knows that the node cannot be reached.
        """

    def run(self, node: Node, argv: Sequence[str], timeout_s: float) -> Completed:
        """Run a command to its end; the transport quotes the arguments.

        Raises:
            SshConnectionFailed: the command was not run, or not to its end.
        """

    def forget(self, node: Node) -> None:
        """Give up the connection that is kept for the node's login: the next command logs in anew."""

    def close(self) -> None:
        """Give up connections that are kept open."""


class NodeLogin(Protocol):
    """Proves that a node can be logged in to."""

    def check(self, node: Node) -> None:
        """Log in with exactly the node's user, host, port and key, and run a harmless command.

        Raises:
            SshConnectionFailed: with the reason.
        """
