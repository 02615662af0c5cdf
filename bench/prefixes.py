"""What a shared beginning costs: the first token of questions under one system prompt, kept and not kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import requests

from bench.embedded import embedded_gguf
from bench.fleet import ROOT, STATE, Fleet
from bench.measuring import Goal, Table, median, seconds
from bench.serving import LLAMA_SERVER
from bench.streams import StreamClient
from rbee.models.text import load_text_model

SYSTEM_WORDS = (100, 300)
ROUNDS = 12
COMPUTE_TYPE = "int8"
_CONTEXT = 1024
_TOKENS = 4
FirstToken = Callable[[str, str], float]
"""Seconds to the first token, given the system's text and the question."""


def measure() -> Table:
    """Our worker with and without kept beginnings and llama.cpp's server with its own, in turn."""
    threads = len(os.sched_getaffinity(0))
    source = embedded_gguf()
    command = [sys.executable, "-c", LLAMA_SERVER, str(source), "1", str(threads), str(_CONTEXT)]
    quiet = subprocess.DEVNULL
    with ExitStack() as stack:
        sides: dict[str, FirstToken] = {}
        for name, megabytes in (("worker", 256), ("worker, nothing kept", 0)):
            config = f'[worker]\ncompute_type = "{COMPUTE_TYPE}"\nprefix_cache_mb = {megabytes}\n'
            fleet = stack.enter_context(Fleet(config, name=f"prefixes-{megabytes}"))
            url, _, key = fleet.warm_worker()
            sides[name] = _ours(stack, url, key)
        llama = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet)
        )
        stack.callback(llama.kill)
        if llama.stdout is None:
            raise RuntimeError("llama.cpp's server has no output")
        sides["llama.cpp"] = _llama(json.loads(llama.stdout.readline()))
        folder = max(
            (STATE / "models" / "ct2").glob(f"*-{COMPUTE_TYPE}"), key=lambda path: path.stat().st_mtime
        )
        text = load_text_model(folder)
        prose = " ".join((ROOT / "ARCHITECTURE.md").read_text().split()).split(" ")
        rows, goals = [], []
        for words in SYSTEM_WORDS:
            system = " ".join(prose[:words])
            shared = len(text.encode_prompt(system, raw=True))
            times: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(ROUNDS + 1):
                question = f"Answer in one word: what is said about number {turn}?"
                for name, ask in sides.items():
                    times[name].append(ask(system, question))
            rest = {name: median(each[1:]) for name, each in times.items()}
            rows += [[str(shared), name, seconds(times[name][0]), seconds(rest[name])] for name in sides]
            goals.append(
                Goal(
                    f"kept / not kept, {shared} tokens",
                    rest["worker"] / rest["worker, nothing kept"],
                    0.5,
                    "",
                )
            )
    columns = ["tokens of the system's turn", "served by", "first token, first question", "the next, p50"]
    note = (
        f"{source.name}, {COMPUTE_TYPE}, one slot, {threads} threads; {ROUNDS} different questions under "
        "the same system's turn, one after the other, the servers in turn. llama.cpp keeps what its slot has "
        "read last."
    )
    return Table("Shared beginnings", columns, rows, note, goals)


def _ours(stack: ExitStack, url: str, key: str) -> FirstToken:
    client = StreamClient(url, "/v1/inference", key)
    stack.callback(client.close)

    def ask(system: str, question: str) -> float:
        body = {"prompt": question, "system": system, "max_tokens": _TOKENS, "temperature": 0.0}
        return client.run(body).first

    return ask


def _llama(url: str) -> FirstToken:
    def ask(system: str, question: str) -> float:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        body: dict[str, Any] = {"messages": messages, "max_tokens": _TOKENS, "temperature": 0, "stream": True}
        body["cache_prompt"] = True
        begun, first = time.perf_counter(), 0.0
        with requests.post(f"{url}/v1/chat/completions", json=body, stream=True, timeout=600) as answer:
            for line in answer.iter_lines(chunk_size=None):
                if not first and line.startswith(b"data: {") and b'"content":"' in line:
                    first = time.perf_counter() - begun
        return first

    return ask
