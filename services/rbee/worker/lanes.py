"""Sends waiting requests to the engine in batches: some lanes at once, nobody waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import gevent
from gevent.event import Event

from rbee.worker.batching import Candidate, Costs, next_batch

T = TypeVar("T")


@dataclass(frozen=True)
class LanePlan:
    """How many batches may run at once, and how long requests wait for company or for a lane."""

    slots: int
    """Requests that may be there at all: when all are, nobody is waited for."""
    usual: int
    """Lanes that share the device well."""
    costs: Costs
    patience_s: float = 5.0
    """Longest wait behind full lanes: then a lane more is opened, which slows the others down."""
    gather_s: float = 0.01
    """A batch is closed when nobody has come for this long …"""
    gather_most_s: float = 0.1
    """… or its first member has waited this long."""


@dataclass(eq=False)
class Waiting(Generic[T]):
    """A job that waits."""

    job: T
    candidate: Candidate
    since: float
    """On the monotonic clock."""


class Lanes(Generic[T]):
    """Runs jobs through ``run_batch``, which is called with one batch in a greenlet of its own.

    All methods are for greenlets of one thread and none blocks.

    Args:
        kept: the prefixes that the engine need not read.
    """

    def __init__(
        self, plan: LanePlan, run_batch: Callable[[list[T]], None], kept: Container[Hashable] = ()
    ) -> None:
        self._plan = plan
        self._kept = kept
        self._run_batch = run_batch
        self._waiting: list[Waiting[T]] = []
        self._running = 0
        """Batches under way."""
        self._unfinished = 0
        """Jobs of theirs that have not ended."""
        self._changed = Event()
        self._dispatcher: gevent.Greenlet | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._running and not self._waiting

    def add(self, job: T, candidate: Candidate) -> Waiting[T]:
        """Have ``job`` run as soon as there is room."""
        waiting = Waiting(job, candidate, time.monotonic())
        self._waiting.append(waiting)
        self._changed.set()
        if self._dispatcher is None:
            self._dispatcher = gevent.spawn(self._dispatch)
        return waiting

    def withdraw(self, waiting: Waiting[T]) -> bool:
        """Whether the job was still waiting; it will not be run then."""
        if waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        self._changed.set()
        return True

    def finished(self) -> None:
        """A job has ended before the rest of its batch, or with it; called once for each that was run."""
        self._unfinished -= 1

    def _dispatch(self) -> None:
        while self._waiting:
            if not self._has_lane():
                self._wait(self._plan.patience_s - self._age())
            elif not self._is_gathered():
                self._wait(self._plan.gather_s)
            else:
                self._send(self._plan.usual - self._running)
        self._dispatcher = None

    def _send(self, lanes: int) -> None:
        candidates = [each.candidate for each in self._waiting]
        chosen = next_batch(candidates, self._plan.costs, max(1, lanes), self._kept)
        batch = [each for each in self._waiting if each.candidate in chosen]
        self._waiting = [each for each in self._waiting if each.candidate not in chosen]
        self._running += 1
        self._unfinished += len(batch)
        gevent.spawn(self._run, [each.job for each in batch])

    def _run(self, jobs: list[T]) -> None:
        try:
            self._run_batch(jobs)
        finally:
            self._running -= 1
            self._changed.set()

    def _has_lane(self) -> bool:
        if self._running < self._plan.usual:
            return True
        return self._running < self._plan.slots and self._age() >= self._plan.patience_s

    def _is_gathered(self) -> bool:
        plan = self._plan
        if len(self._waiting) + self._unfinished >= plan.slots:
            return True
        quiet_s = time.monotonic() - self._waiting[-1].since
        return quiet_s >= plan.gather_s or self._age() >= plan.gather_most_s

    def _age(self) -> float:
        return time.monotonic() - self._waiting[0].since

    def _wait(self, seconds: float) -> None:
        self._changed.clear()
        self._changed.wait(max(0.001, seconds))
