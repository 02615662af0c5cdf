"""When to try again and what the user is told about it: connection attempts and busy workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One connection attempt: its number from 1 and how long to wait before it."""

    number: int
    delay_ms: int


def attempts(count: int, delays_ms: Sequence[int]) -> list[Attempt]:
    """The attempts of a connection; the last delay is repeated when there are more attempts than delays."""
    padded = list(delays_ms) or [0]
    return [Attempt(i + 1, padded[min(i, len(padded) - 1)]) for i in range(count)]


def attempt_line(attempt: Attempt, host: str, port: int, timeout_s: float) -> str:
    """What is narrated before an attempt."""
    delay = f", delay {attempt.delay_ms}ms" if attempt.number > 1 else ""
    return f"Attempt {attempt.number}: Connecting to {host}:{port}... (timeout {timeout_s:g}s{delay})"


def busy_wait_s(retry: int, delays_s: Sequence[float]) -> float:
    """The wait before busy retry number ``retry`` (from 0): the configured ones, then doubling the last."""
    if not delays_s:
        return 0.0
    beyond = max(0, retry - len(delays_s) + 1)
    return float(delays_s[min(retry, len(delays_s) - 1)]) * 2**beyond


def busy_line(wait_s: float) -> str:
    """What is narrated before a busy retry."""
    return f"Worker is busy, retrying in {wait_s:g} second{'' if wait_s == 1 else 's'}..."
