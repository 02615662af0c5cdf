"""Decode speed of the worker over HTTP against calling the engine directly in this process."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

from bench.fleet import STATE, Fleet
from bench.measuring import Goal, Table, median
from bench.streams import StreamClient

PROMPT = "Write a long story about a bee."
TOKENS = 160
ROUNDS = 5
COMPUTE_TYPES = ("int8", "float32")


def direct_gaps(folder: Path, compute_type: str, rounds: int) -> list[float]:
    """Median seconds per token of each round of ``generate_batch`` on the same folder, threads and prompt."""
    import ctranslate2

    from rbee.models.text import load_text_model

    text = load_text_model(folder)
    generator = ctranslate2.Generator(
        str(folder), compute_type=compute_type, intra_threads=len(os.sched_getaffinity(0))
    )
    prompt = [text.tokens[i] for i in text.encode_prompt(PROMPT)]
    found = []
    for _ in range(rounds + 1):
        arrivals: list[float] = []

        def note(_step: object, arrivals: list[float] = arrivals) -> bool:
            arrivals.append(time.perf_counter())
            return False

        generator.generate_batch(
            [prompt],
            max_length=TOKENS,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=note,
        )
        gaps = [later - earlier for earlier, later in pairwise(arrivals)]
        found.append(median(gaps))
    return found[1:]


def measure() -> Table:
    """Rounds of the worker and of the engine alone, in turn, on the converted embedded model."""
    rows, goals = [], []
    for compute_type in COMPUTE_TYPES:
        worker, direct = _compare(compute_type)
        rows.append([compute_type, f"{1 / worker:.1f}", f"{1 / direct:.1f}", f"{direct / worker:.3f}"])
        goals.append(
            Goal(f"worker / engine alone, {compute_type}", direct / worker, 0.95, "", is_minimum=True)
        )
    return Table(
        "Decode speed, one stream",
        [
            "compute type",
            "worker over HTTP, tokens/s",
            "generate_batch in one process",
            "worker / engine alone",
        ],
        rows,
        f"Greedy, {TOKENS} tokens, medians of {ROUNDS} rounds in turn.",
        goals,
    )


def _compare(compute_type: str) -> tuple[float, float]:
    """Seconds per token of the worker and of the engine alone."""
    worker: list[float] = []
    direct: list[float] = []
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0}
    with Fleet(f'[worker]\ncompute_type = "{compute_type}"\n') as fleet:
        url, _, key = fleet.warm_worker()
        folders = (STATE / "models" / "ct2").glob(f"*-{compute_type}")
        folder = max(folders, key=lambda found: found.stat().st_mtime)
        client = StreamClient(url, "/v1/inference", key)
        client.run(body)
        for _ in range(ROUNDS):
            worker.append(median(client.run(body).gaps))
            direct += direct_gaps(folder, compute_type, 1)
        client.close()
    return median(worker), median(direct)
