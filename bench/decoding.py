"""Decode speed of the worker over HTTP against calling the engine directly in this process."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

from bench.fleet import STATE, Fleet
from bench.measuring import Table, median
from bench.streams import StreamClient

PROMPT = "Write a long story about a bee."
TOKENS = 160
ROUNDS = 5


def direct_gaps(folder: Path, rounds: int) -> list[float]:
    """Median seconds per token of each round of ``generate_batch`` on the same folder, threads and prompt."""
    import ctranslate2

    from rbee.models.text import load_text_model

    text = load_text_model(folder)
    generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=len(os.sched_getaffinity(0)))
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
    worker: list[float] = []
    direct: list[float] = []
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0}
    with Fleet() as fleet:
        url, _, key = fleet.warm_worker()
        folder = max((STATE / "models" / "ct2").glob("*-float32"), key=lambda f: f.stat().st_mtime)
        client = StreamClient(url, "/v1/inference", key)
        client.run(body)
        for _ in range(ROUNDS):
            worker.append(median(client.run(body).gaps))
            direct += direct_gaps(folder, 1)
        client.close()
    rows = [
        ["worker over HTTP", f"{1 / median(worker):.1f}"],
        ["generate_batch in one process", f"{1 / median(direct):.1f}"],
        ["worker / engine alone", f"{median(direct) / median(worker):.3f}"],
    ]
    return Table(
        "Decode speed, one stream",
        ["path", "tokens/s"],
        rows,
        f"Greedy, {TOKENS} tokens, medians of {ROUNDS} rounds in turn. Goal: a ratio of at least 0.95.",
    )
