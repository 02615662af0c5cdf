"""Many streams at once: tokens per second of our worker, llama.cpp's server and the engine alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests

from bench.embedded import embedded_gguf
from bench.fleet import ROOT, STATE, Fleet
from bench.measuring import Goal, Table, median, percentile
from bench.streams import StreamClient

STREAMS = (1, 4, 8, 16, 32)
TOKENS = 64
EQUAL_LENGTH = 40
ROUNDS = 3
SEED = 20
COMPUTE_TYPE = "int8"
_MEDIAN_LENGTH, _SPREAD, _LONGEST = 66, 0.9, 600
"""Of the mixed prompts' lengths, which are log-normal as the lengths of chat messages are."""
LLAMA_SERVER = r"""
import json, sys, time
import xllamacpp
path, slots, threads, context = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_parallel, params.n_ctx = slots, slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity = -1
server = xllamacpp.Server(params)
print(json.dumps(server.listening_address), flush=True)
sys.stdin.read()
"""
_CONTEXT = 1024


@dataclass
class Prompt:
    text: str
    tokens: list[str]


@dataclass
class Stream:
    """Seconds from the common start to each token of one stream."""

    arrivals: list[float]

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


@dataclass
class Round:
    streams: list[Stream]

    @property
    def rate(self) -> float:
        """Tokens per second of all streams together."""
        return sum(len(s.arrivals) for s in self.streams) / max(s.arrivals[-1] for s in self.streams)


Serve = Callable[[Sequence[Prompt]], Round]


def make_prompts(folder: Path, lengths: Sequence[int], number: int) -> list[Prompt]:
    """Different pieces of this project's prose, each of exactly so many tokens; others for each number."""
    from rbee.models.text import load_text_model

    text = load_text_model(folder)
    words = " ".join(path.read_text() for path in sorted(ROOT.glob("*.md"))).split()
    source, found = random.Random(SEED + number), []  # noqa: S311 (a choice of texts)
    for length in lengths:
        while True:
            start = source.randrange(len(words) - length)
            ids = text.encode_prompt(" ".join(words[start : start + length]), raw=True)[:length]
            decoder = text.decoder()
            piece = "".join(decoder.feed(each) for each in ids) + decoder.flush()
            if text.encode_prompt(piece, raw=True) == ids and len(ids) == length:
                found.append(Prompt(piece, [text.tokens[each] for each in ids]))
                break
    return found


def mixed_lengths(count: int) -> list[int]:
    source = random.Random(SEED)  # noqa: S311 (see above)
    drawn = (source.lognormvariate(0, _SPREAD) * _MEDIAN_LENGTH for _ in range(count))
    return [max(8, min(_LONGEST, int(length))) for length in drawn]


def at_once(count: int, one: Callable[[int], list[float]]) -> Round:
    """Run ``one`` for every number in a thread of its own, all starting together."""
    arrivals: dict[int, list[float]] = {}

    def run(number: int) -> None:
        arrivals[number] = one(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(arrivals) < count:
        raise RuntimeError("a stream failed")
    return Round([Stream(arrivals[number]) for number in range(count)])


def serve_ours(url: str, key: str) -> Serve:
    def serve(prompts: Sequence[Prompt]) -> Round:
        def one(number: int) -> list[float]:
            client = StreamClient(url, "/v1/inference", key)
            body = {"prompt": prompts[number].text, "raw": True, "max_tokens": TOKENS, "temperature": 0.0}
            try:
                return client.run(body).tokens
            finally:
                client.close()

        return at_once(len(prompts), one)

    return serve


def serve_llama(url: str) -> Serve:
    def serve(prompts: Sequence[Prompt]) -> Round:
        def one(number: int) -> list[float]:
            begun, arrivals = time.perf_counter(), []
            body = {
                "prompt": prompts[number].text,
                "n_predict": TOKENS,
                "temperature": 0,
                "stream": True,
                "cache_prompt": False,
            }
            with requests.post(f"{url}/completion", json=body, stream=True, timeout=600) as answer:
                for line in answer.iter_lines(chunk_size=None):
                    if line.startswith(b"data: ") and not json.loads(line[6:])["stop"]:
                        arrivals.append(time.perf_counter() - begun)
            return arrivals

        return at_once(len(prompts), one)

    return serve


def serve_bare(folder: Path, threads: int) -> Serve:
    """The engine's own best: one call for all prompts."""
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), compute_type=COMPUTE_TYPE, intra_threads=threads)

    def serve(prompts: Sequence[Prompt]) -> Round:
        begun = time.perf_counter()
        arrivals: list[list[float]] = [[] for _ in prompts]

        def on_step(step: Any) -> bool:
            arrivals[step.batch_id].append(time.perf_counter() - begun)
            return False

        generator.generate_batch(
            [prompt.tokens for prompt in prompts],
            max_length=TOKENS,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=on_step,
        )
        return Round([Stream(each) for each in arrivals])

    return serve


def measure() -> Table:
    """Every number of streams, with prompts of equal and of mixed lengths; the three take turns."""
    threads = len(os.sched_getaffinity(0))
    most = max(STREAMS)
    config = (
        f'[worker]\ncompute_type = "{COMPUTE_TYPE}"\nmax_parallel_requests = {most}\n'
        f"context_tokens = {_CONTEXT}\n"
    )
    source = embedded_gguf()
    command = [sys.executable, "-c", LLAMA_SERVER, str(source), str(most), str(threads), str(_CONTEXT)]
    quiet = subprocess.DEVNULL
    rows, goals = [], []
    with (
        Fleet(config) as fleet,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet) as llama,
    ):
        try:
            url, _, key = fleet.warm_worker()
            folder = max((STATE / "models" / "ct2").glob(f"*-{COMPUTE_TYPE}"), key=_modified)
            if llama.stdout is None:
                raise RuntimeError("llama.cpp's server has no output")
            sides = {
                "worker": serve_ours(url, key),
                "llama.cpp": serve_llama(json.loads(llama.stdout.readline())),
                "engine alone": serve_bare(folder, threads),
            }
            # What a process makes at its first batch of a size is not what is measured.
            first = make_prompts(folder, [EQUAL_LENGTH] * most, ROUNDS)
            for serve in sides.values():
                serve(first)
            for kind in ("equal", "mixed"):
                for count in STREAMS:
                    lengths = [EQUAL_LENGTH] * count if kind == "equal" else mixed_lengths(count)
                    rounds: dict[str, list[Round]] = {name: [] for name in sides}
                    for number in range(ROUNDS):
                        prompts = make_prompts(folder, lengths, number)
                        for name, serve in sides.items():
                            rounds[name].append(serve(prompts))
                    rows += [_row(kind, count, name, rounds) for name in sides]
                    goals += _goals(kind, count, rounds)
        finally:
            llama.kill()
    columns = ["prompts", "streams", "served by", "tokens/s", "of llama.cpp", "first token p50", "p95"]
    columns.append("between tokens p50")
    note = (
        f"{source.name}; {TOKENS} greedy tokens a stream, all at once, medians of {ROUNDS} rounds in turn, "
        "each with prompts of its own. "
        f"Equal: {EQUAL_LENGTH} tokens. Mixed: log-normal, median {_MEDIAN_LENGTH}, at most {_LONGEST}. "
        f"{threads} threads each; the worker has {most} slots, the engine alone gets one call for all."
    )
    return Table("Serving many streams", columns, rows, note, goals)


def _rate(rounds: Sequence[Round]) -> float:
    return median([each.rate for each in rounds])


def _row(kind: str, count: int, name: str, rounds: dict[str, list[Round]]) -> list[str]:
    streams = [stream for each in rounds[name] for stream in each.streams]
    firsts = [stream.arrivals[0] for stream in streams]
    gaps = [gap for stream in streams for gap in stream.gaps]
    return [
        kind,
        str(count),
        name,
        f"{_rate(rounds[name]):.1f}",
        f"{_rate(rounds[name]) / _rate(rounds['llama.cpp']):.2f}",
        f"{median(firsts):.2f} s",
        f"{percentile(firsts, 0.95):.2f} s",
        f"{1000 * median(gaps):.0f} ms",
    ]


def _goals(kind: str, count: int, rounds: dict[str, list[Round]]) -> list[Goal]:
    ours = _rate(rounds["worker"])
    goals = []
    if count == 16:
        limit = 1.5 if kind == "equal" else 1.0
        ratio = ours / _rate(rounds["llama.cpp"])
        goals.append(Goal(f"worker / llama.cpp, 16 {kind} prompts", ratio, limit, "", is_minimum=True))
    if kind == "equal" and count > 1:
        ratio = ours / _rate(rounds["engine alone"])
        goals.append(Goal(f"worker / engine alone, {count} equal", ratio, 0.95, "", is_minimum=True))
    return goals


def _modified(path: Path) -> float:
    return path.stat().st_mtime
