"""From the command to the first token, cold, warm on disk, and with a running queen."""

from __future__ import annotations

import subprocess
import time

from bench.fleet import Fleet, Home, program
from bench.measuring import Goal, Table, median, seconds

PROMPT = "Write a short story about a bee."
ROUNDS = 5


def first_token(home: Home, *extra: str) -> tuple[float, float]:
    """Seconds from starting ``rbee-keeper infer`` to its first byte on stdout, and to its end."""
    command = [*program("rbee-keeper"), *extra, "infer", "--prompt", PROMPT, "--max-tokens", "16", "--quiet"]
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=home.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        if process.stdout is None or not process.stdout.read(1):
            raise RuntimeError(f"infer printed nothing and ended with {process.wait()}")
        first = time.perf_counter() - started
        process.stdout.read()
    return first, time.perf_counter() - started


def help_time() -> float:
    """Seconds that ``rbee-keeper --help`` takes."""
    started = time.perf_counter()
    subprocess.run([*program("rbee-keeper"), "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def measure() -> Table:
    """Medians of whole commands; the cold row downloads and converts, once."""
    home = Home("startup")
    cold = first_token(home)
    warm = [first_token(home) for _ in range(ROUNDS)]
    with Fleet() as fleet:
        first_token(fleet.home, "--queen-url", fleet.url)
        running = [first_token(fleet.home, "--queen-url", fleet.url) for _ in range(ROUNDS)]
    helped = [help_time() for _ in range(ROUNDS)]
    rows = [
        ["first run in this state directory", seconds(cold[0]), seconds(cold[1])],
        [
            "nothing running, model converted on disk",
            *(seconds(median([w[i] for w in warm])) for i in (0, 1)),
        ],
        ["queen, hive and worker running", *(seconds(median([r[i] for r in running])) for i in (0, 1))],
        ["rbee-keeper --help", "", seconds(median(helped))],
    ]
    return Table(
        "Command to first token",
        ["situation", "first token", "command ended"],
        rows,
        f"Medians of {ROUNDS}. The first row downloads and converts only when .bench holds no model yet.",
        [
            Goal("first token with the model on disk", median([w[0] for w in warm]), 4, "s"),
            Goal("rbee-keeper --help", median(helped), 0.3, "s"),
        ],
    )
