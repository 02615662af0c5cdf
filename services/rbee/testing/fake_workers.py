"""Workers without processes: fakes of the ports by which a hive starts, asks and remembers workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gevent.event import AsyncResult, Event

from rbee.core.errors import WorkerStartFailed
from rbee.core.lifecycle import WorkerState
from rbee.hive.ports import JournalRow, Narrator, NoAnswer, WorkerOrder, WorkerReport


class FakeProcess:
    """A process that ends when it is told to; ``ignores`` lists signals without effect."""

    def __init__(self, pid: int, ignores: tuple[int, ...] = ()) -> None:
        self.pid = pid
        self.started = 1000.0
        self.ignores = ignores
        self.signals: list[int] = []
        self._status: AsyncResult[int] = AsyncResult()

    def end(self, status: int = 0) -> None:
        if not self._status.ready():
            self._status.set(status)

    def wait(self) -> int:
        return self._status.get()

    def signal_group(self, number: int) -> bool:
        if self._status.ready():
            return False
        self.signals.append(number)
        if number == signal.SIGKILL or number not in self.ignores:
            self.end(-number)
        return True


class FakeLauncher:
    """Implements WorkerLauncher with ``FakeProcess``."""

    def __init__(self, error: str | None = None, ignores: tuple[int, ...] = ()) -> None:
        self.error = error
        self.ignores = ignores
        self.is_missing = False
        self.orders: list[WorkerOrder] = []
        self.processes: list[FakeProcess] = []
        self.forgotten: list[str] = []

    def check(self) -> None:
        if self.is_missing:
            raise WorkerStartFailed("program missing")

    def launch(self, order: WorkerOrder, narrate: Narrator) -> FakeProcess:
        if self.error is not None:
            raise WorkerStartFailed(self.error)
        self.orders.append(order)
        narrate("llm-worker-rbee", "startup", "started")
        self.processes.append(FakeProcess(4000 + len(self.processes), self.ignores))
        return self.processes[-1]

    def log_path(self, worker_id: str) -> Path:
        return Path("/nowhere") / f"{worker_id}.log"

    def last_lines(self, worker_id: str, count: int) -> list[str]:
        return [f"last line of {worker_id}"][:count]

    def bound_log(self, worker_id: str) -> None:
        """Nothing is written."""

    def forget(self, worker_id: str) -> None:
        self.forgotten.append(worker_id)


class FakeConnection:
    """Implements WorkerConnection: answers with ``report``, or with ``failure`` while that is set."""

    def __init__(self) -> None:
        self.report = WorkerReport(WorkerState.LOADING, 1, 0)
        self.failure: NoAnswer | None = None
        self.acknowledges = True
        self.drains: list[float] = []
        self.asked: list[str] = []
        self.is_closed = False
        self.loaded = Event()

    def become(self, state: WorkerState, idle_since: str | None = None) -> None:
        self.report = WorkerReport(state, 1, int(state is WorkerState.IDLE), idle_since)

    def ready(self, timeout_s: float) -> WorkerReport:  # noqa: ARG002
        return self._answer("ready")

    def health(self, timeout_s: float) -> WorkerReport:  # noqa: ARG002
        return self._answer("health")

    def shut_down(self, drain_s: float, timeout_s: float) -> None:  # noqa: ARG002
        self.asked.append("shutdown")
        self.drains.append(drain_s)
        if not self.acknowledges:
            raise NoAnswer("timeout", "no answer")
        self.become(WorkerState.DRAINING)

    def loading_events(self, silence_s: float) -> Iterator[dict[str, Any]]:
        self.loaded.wait(silence_s)
        yield {"stage": "ready"}

    def close(self) -> None:
        self.is_closed = True

    def _answer(self, path: str) -> WorkerReport:
        self.asked.append(path)
        if self.failure is not None:
            raise self.failure
        return self.report


class MemoryJournal:
    """Implements PidJournal in memory."""

    def __init__(self) -> None:
        self._rows: dict[str, JournalRow] = {}

    def add(self, row: JournalRow) -> None:
        self._rows[row.worker_id] = row

    def remove(self, worker_id: str) -> None:
        self._rows.pop(worker_id, None)

    def rows(self, hive_port: int | None = None) -> list[JournalRow]:
        found = sorted(self._rows.values(), key=lambda row: row.started_at_unix)
        return [row for row in found if hive_port is None or row.hive_port == hive_port]

    def clear(self, hive_port: int) -> None:
        self._rows = {k: row for k, row in self._rows.items() if row.hive_port != hive_port}

    def close(self) -> None:
        """Nothing to close."""
