"""Starts real daemons for tests, each with its own home, and ends exactly what it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "queen-rbee": "rbee.queen",
    "rbee-hive": "rbee.hive",
    "llm-worker-rbee": "rbee.worker",
    "sample": "support.sample_service",
}
T = TypeVar("T")


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment built from nothing, with its own home and state directory."""
    home.mkdir(parents=True, exist_ok=True)
    values = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(home),
        "TMPDIR": str(home),
        "RBEE_HOME": str(home / ".rbee"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'cli'}:{ROOT / 'tests'}",
        "PYTHONUNBUFFERED": "1",
        **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "OPENBLAS_"))},
    }
    return {**values, **(extra or {})}


def wait_until(condition: Callable[[], T], timeout_s: float = 20.0, what: str = "the condition") -> T:
    """Poll until ``condition`` gives something true; fail the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s")
        time.sleep(0.02)


class Daemon:
    """A running daemon; a context manager that ends it and checks that it is gone."""

    def __init__(
        self, program: str, args: Sequence[str], env: Mapping[str, str], *, start_timeout_s: float = 30.0
    ) -> None:
        home = Path(env["HOME"])
        self._output = home / f"{program}-{time.monotonic_ns()}.out"
        self.program = program
        with self._output.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULES[program], *args],
                env=dict(env),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.url = wait_until(self._announced, start_timeout_s, f"{program} listening")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _announced(self) -> str | None:
        match = re.search(rf"{self.program} listening on (http://\S+)", self.output)
        if match is None and self.process.poll() is not None:
            raise AssertionError(f"{self.program} ended with {self.process.returncode}: {self.output}")
        return match.group(1) if match else None

    @property
    def output(self) -> str:
        """Everything it printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def descendants(self) -> list[psutil.Process]:
        """All processes below it that are alive."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 40.0) -> int:
        """Signal it, wait for its end, kill what outlives it; returns its exit code."""
        below = self.descendants()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(5)
        finally:
            for process in below:
                try:
                    process.wait(3)
                except psutil.TimeoutExpired:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
