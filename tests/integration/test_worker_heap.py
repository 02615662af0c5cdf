"""A worker with several slots takes memory for what it does at a time, not for what it has done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.worker_process import running_worker

pytestmark = pytest.mark.model

SLOTS = 8
PROMPT = "The bees of the valley fly out to the lime trees and come home. " * 24
"""About 340 tokens."""
OWN_MB = 48
"""What a thread of the engine may keep; the calculation before a conversion counts it for each slot."""


def test_requests_one_after_the_other_take_no_more_memory_than_one(
    embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    """The engine takes another of its threads for each of them."""
    settings = {"worker": {"max_parallel_requests": SLOTS, "prefix_cache_mb": 0}}
    with running_worker(tmp_path, embedded_converted("int8"), settings=settings) as worker:
        worker.wait_state("idle", 120)
        process = max(
            psutil.Process(worker.daemon.process.pid).children(), key=lambda each: each.memory_info().rss
        )

        def resident_mb() -> int:
            worker.text(prompt=PROMPT, raw=True, max_tokens=2, temperature=0)
            return int(process.memory_info().rss) >> 20

        first = resident_mb()
        later = [resident_mb() for _ in range(SLOTS + 2)]
        assert later[-1] - first < (SLOTS - 1) * OWN_MB, (first, later)
