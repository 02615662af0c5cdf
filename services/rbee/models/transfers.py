"""Attempts of one model transfer: what is retried, after how long, and what the user is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rbee.core.errors import DownloadFailed, DownloadTimeout

T = TypeVar("T")

RENEWING_BYTES = 16 * 1024 * 1024
"""A transfer that moved this much since its last failure is on its way, and gets all its attempts again."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a source is asked. The last delay repeats when there are more attempts."""

    attempts: int = 6
    delays_ms: tuple[int, ...] = (100, 200, 400, 800, 1600)
    stall_timeout_s: float = 60.0
    """A transfer that brings no byte for this long counts as failed."""

    def delay_ms(self, failures: int) -> int:
        """The wait after the n-th failed attempt, counted from 1."""
        if not self.delays_ms:
            return 0
        return self.delays_ms[min(failures, len(self.delays_ms)) - 1]


class TransferListener(Protocol):
    """Who follows a transfer."""

    def begin(self, done: int) -> None:
        """Bytes are about to arrive, after ``done`` that are there already; progress may start over."""

    def received(self, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes are on disk; ``total`` is None where the source does not tell."""

    def narrate(self, action: str, human: str) -> None:
        """Something a user should read now."""


class TransferInterrupted(Exception):
    """An attempt failed for a reason that another attempt may not meet; never leaves ``rbee.models``."""

    def __init__(self, reason: str, *, stalled: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stalled = stalled
        self.retry_after_s = retry_after_s


class Transfer:
    """The attempts of fetching one model. Asking the source and moving the bytes draw on the same number.

    A large model over a poor line is not given up while it gets on: see ``RENEWING_BYTES``.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        listener: TransferListener,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.policy = policy
        self.listener = listener
        self._sleep = sleep
        self._failures = 0
        self._stalls = 0
        self._moved = 0

    def attempt(self, operation: Callable[[], T]) -> T:
        """Run ``operation`` until it gives a result, waiting between attempts as the policy says.

        Raises:
            DownloadFailed: the attempts are used up; carries the last reason.
            DownloadTimeout: the same, and every one of them stalled.
        """
        while True:
            try:
                return operation()
            except TransferInterrupted as interruption:
                self._failed(interruption)

    def moved(self, count: int) -> None:
        """Note that ``count`` bytes have arrived."""
        self._moved += count

    @contextmanager
    def of_part(self, before: int, total: int | None) -> Iterator[None]:
        """Report what is transferred inside as a part of ``total`` bytes, ``before`` of which precede it."""
        whole = self.listener
        self.listener = _PartListener(whole, before, total)
        try:
            yield
        finally:
            self.listener = whole

    def _failed(self, interruption: TransferInterrupted) -> None:
        if self._moved >= RENEWING_BYTES:
            self._failures = self._stalls = 0
        self._moved = 0
        self._failures += 1
        self._stalls += interruption.stalled
        if self._failures >= self.policy.attempts:
            if self._stalls == self._failures:
                raise DownloadTimeout(self._failures) from interruption
            raise DownloadFailed(self._failures, interruption.reason) from interruption
        # A source may ask for patience, but not for more than a stall would be granted.
        asked_ms = round(min(interruption.retry_after_s, self.policy.stall_timeout_s) * 1000)
        delay_ms = max(self.policy.delay_ms(self._failures), asked_ms)
        self.listener.narrate("retry", f"Error: {interruption.reason}")
        self.listener.narrate(
            "retry",
            f"Retrying download (attempt {self._failures + 1}/{self.policy.attempts})... delay {delay_ms}ms",
        )
        self._sleep(delay_ms / 1000)


class _PartListener:
    """Counts the bytes of one file among those of all files of its model."""

    def __init__(self, whole: TransferListener, before: int, total: int | None) -> None:
        self._whole = whole
        self._before = before
        self._total = total

    def begin(self, done: int) -> None:
        self._whole.begin(self._before + done)

    def received(self, done: int, total: int | None) -> None:  # noqa: ARG002 - the part's own size
        self._whole.received(self._before + done, self._total)

    def narrate(self, action: str, human: str) -> None:
        self._whole.narrate(action, human)
