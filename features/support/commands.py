"""Runs programs as a user would and keeps what they printed, line by line with its time."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """One line of output and when it arrived (seconds since the command started)."""

    at_s: float
    text: str


@dataclass(frozen=True)
class CommandResult:
    """What a finished command left: nothing of it can be changed afterwards."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    stderr_lines: tuple[Line, ...]
    duration_s: float
    started_unix: float
    pid: int

    def stream(self, name: str) -> str:
        return {"stdout": self.stdout, "stderr": self.stderr}[name]


class RunningCommand:
    """A command that is still running; its output so far can be read at any time."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.argv = tuple(argv)
        self.started_unix = time.time()
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            argv,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._out: list[tuple[float, bytes]] = []
        self._err: list[tuple[float, bytes]] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, source: IO[bytes], sink: list[tuple[float, bytes]]) -> None:
        while piece := source.read1(65536):  # type: ignore[attr-defined]
            sink.append((time.monotonic() - self._started, piece))

    @property
    def stdout(self) -> str:
        return b"".join(piece for _, piece in self._out).decode(errors="replace")

    @property
    def stderr(self) -> str:
        return b"".join(piece for _, piece in self._err).decode(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self, timeout_s: float = 120.0) -> CommandResult:
        """Wait for the end.

        Raises:
            AssertionError: it did not end in time; it is killed.
        """
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(
                f"{' '.join(self.argv)} did not end within {timeout_s:g} s\n{self.stdout}\n{self.stderr}"
            ) from None
        duration = time.monotonic() - self._started
        for reader in self._readers:
            reader.join(5)
        return CommandResult(
            self.argv,
            code,
            self.stdout,
            self.stderr,
            tuple(_lines(self._err)),
            duration,
            self.started_unix,
            self.process.pid,
        )

    def end(self) -> None:
        """End it in whatever state it is."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


def _lines(pieces: list[tuple[float, bytes]]) -> list[Line]:
    """Cut pieces into lines; a line's time is that of the piece that ends it."""
    found, rest = [], b""
    for at_s, piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        found += [Line(at_s, text.decode(errors="replace")) for text in whole]
    if rest:
        found.append(Line(pieces[-1][0], rest.decode(errors="replace")))
    return found


def wait_until(condition: Callable[[], T], timeout_s: float = 20.0, what: str = "the condition") -> T:
    """Poll until ``condition`` gives something true.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s")
        time.sleep(0.02)
    return value
