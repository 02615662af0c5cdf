"""What supervision needs from outside: worker processes, their HTTP, and a journal that survives a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rbee.core.lifecycle import WorkerState

Narrator = Callable[[str, str, str], None]
"""Called with actor, action and text of a narration line."""


class NoAnswer(Exception):
    """A worker gave no usable answer; ``kind`` is ``refused``, ``timeout``, ``reset`` or ``unreadable``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says about itself."""

    state: WorkerState
    slots_total: int
    slots_available: int
    idle_since: str | None = None
    vram_bytes: int | None = None


@dataclass(frozen=True)
class WorkerOrder:
    """Everything a worker process is started with."""

    worker_id: str
    model_folder: Path
    model_ref: str
    backend: str
    device: int
    port: int
    key: str
    slots: int


WORKER_ID_VARIABLE = "RBEE_WORKER_ID"
"""In the environment of a worker and of everything it starts, so that nobody else is taken for it."""


class WorkerProcess(Protocol):
    """A started worker: the leader of a process group of its own."""

    pid: int
    started: float
    """Start time in Unix seconds as the system tells it; with the pid it is an identity."""

    def wait(self) -> int:
        """Block until it has ended; its exit status, negative for a signal."""

    def signal_group(self, number: int) -> bool:
        """Signal the whole group; False when nothing of it is left."""


class WorkerLauncher(Protocol):
    """Starts worker processes."""

    def check(self) -> None:
        """Raise WorkerStartFailed when the worker program cannot be found."""

    def launch(self, order: WorkerOrder, narrate: Narrator) -> WorkerProcess:
        """Start the process; its narration lines are passed on as they come.

        Raises:
            WorkerStartFailed: the process could not be started.
        """

    def log_path(self, worker_id: str) -> Path:
        """Where the worker's output goes."""

    def last_lines(self, worker_id: str, count: int) -> list[str]:
        """The end of the worker's log."""

    def bound_log(self, worker_id: str) -> None:
        """Keep the worker's log within its size; what is too much goes to one older file."""

    def forget(self, worker_id: str) -> None:
        """Remove the key file of a worker that is gone."""


class WorkerConnection(Protocol):
    """Speaks to one worker over HTTP. Every method raises NoAnswer when no usable answer comes in time."""

    def ready(self, timeout_s: float) -> WorkerReport:
        """``GET /v1/ready``."""

    def health(self, timeout_s: float) -> WorkerReport:
        """``GET /v1/health``."""

    def shut_down(self, drain_s: float, timeout_s: float) -> None:
        """``POST /v1/admin/shutdown``; returns once it is acknowledged."""

    def loading_events(self, silence_s: float) -> Iterator[dict[str, Any]]:
        """The events of ``GET /v1/loading/progress`` as they come, until the worker ends the stream."""

    def close(self) -> None:
        """Close idle connections."""


Connect = Callable[[int, str], WorkerConnection]
"""Makes the connection to a worker of this machine from its port and key; nothing is sent yet."""


@dataclass(frozen=True)
class JournalRow:
    """One row of ``worker_pids``: a process that a later hive on the same port would have to end."""

    worker_id: str
    hive_port: int
    pid: int
    pid_started: float
    port: int
    started_at_unix: int


class PidJournal(Protocol):
    """Remembers worker processes across a crash of the hive."""

    def add(self, row: JournalRow) -> None: ...

    def remove(self, worker_id: str) -> None: ...

    def rows(self, hive_port: int | None = None) -> list[JournalRow]:
        """The rows of one hive, or all."""

    def clear(self, hive_port: int) -> None:
        """Remove the rows of one hive."""

    def close(self) -> None: ...


class VramMeter(Protocol):
    """Tells free device memory, for the wait after a CUDA worker has ended."""

    def free_mb(self, device: int) -> int | None:
        """Free memory of the CUDA device; None when it cannot be told."""
