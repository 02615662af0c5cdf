"""Waits until the memory of an ended CUDA worker is free again, so that the next check sees it."""

from __future__ import annotations

import time
from typing import Any

import gevent

from rbee.core.settings import Timing
from rbee.hive.ports import VramMeter

MIB = 1024 * 1024


def is_recovered(before_mb: int, now_mb: int, expected_mb: float, ratio: float) -> bool:
    """Whether enough of the expected memory is free again."""
    return now_mb - before_mb >= ratio * expected_mb


class VramRecovery:
    """Polls free device memory after a worker has ended."""

    def __init__(self, meter: VramMeter, timing: Timing, log: Any) -> None:
        self._meter = meter
        self._timing = timing
        self._log = log
        self._before: dict[str, int] = {}
        self._waiting: set[gevent.Greenlet] = set()

    def note(self, worker_id: str, device: int) -> None:
        """Remember how much is free while the worker still holds its memory."""
        free_mb = self._meter.free_mb(device)
        if free_mb is not None:
            self._before[worker_id] = free_mb

    def await_recovery(self, worker_id: str, device: int, vram_bytes: int | None) -> None:
        """Begin to poll; returns at once. Without a figure from before there is nothing to compare with."""
        before_mb = self._before.pop(worker_id, None)
        if before_mb is None or not vram_bytes:
            return
        waiting = gevent.spawn(self._poll, worker_id, device, before_mb, vram_bytes / MIB)
        self._waiting.add(waiting)
        waiting.link(self._waiting.discard)

    def settle(self) -> None:
        """Block until no recovery is awaited any more."""
        gevent.joinall(list(self._waiting))

    def _poll(self, worker_id: str, device: int, before_mb: int, expected_mb: float) -> None:
        deadline = time.monotonic() + self._timing.vram_recovery_timeout_s
        while True:
            now_mb = self._meter.free_mb(device)
            if now_mb is None or is_recovered(
                before_mb, now_mb, expected_mb, self._timing.vram_recovery_ratio
            ):
                return
            if time.monotonic() >= deadline:
                break
            gevent.sleep(self._timing.vram_recovery_poll_ms / 1000)
        self._log.warning(
            "vram_not_recovered",
            message=f"cuda:{device} has {now_mb} MB free; {before_mb + expected_mb:.0f} MB were expected",
            worker_id=worker_id,
            device=device,
        )
