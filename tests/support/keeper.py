"""Runs the keeper as users do: a process with its own streams and an environment built from nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from support.daemons import environment, wait_until
from support.processes import arguments, with_variable

COMMAND = [sys.executable, "-m", "rbee_keeper"]


@dataclass(frozen=True)
class Outcome:
    """What one finished run left on its streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def bars(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if re.search(r"\[[█-]{20}\] \d+%", line)]


def run_keeper(
    home: Path,
    *args: str,
    extra: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float = 60.0,
) -> Outcome:
    """Run one command to its end."""
    done = subprocess.run(
        [*COMMAND, *args],
        env=environment(home, extra),
        cwd=home,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout_s,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


class RunningKeeper:
    """A keeper that is still at work; a context manager that kills what has not ended.

    Args:
        folder: takes its output, where another keeper of this home writes to the home itself.
    """

    def __init__(
        self, home: Path, *args: str, extra: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._paths = [(folder or home) / f"keeper-{name}.txt" for name in ("out", "err")]
        environ = environment(home, extra)
        files: list[IO[bytes]] = [path.open("wb") for path in self._paths]
        try:
            self.process = subprocess.Popen(
                [*COMMAND, *args],
                env=environ,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=files[0],
                stderr=files[1],
                start_new_session=True,
            )
        finally:
            for file in files:
                file.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._paths[0].read_text()

    @property
    def stderr(self) -> str:
        return self._paths[1].read_text()

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        """Until ``text`` stands on either stream; fails at once when the keeper ends without it."""

        def seen() -> bool:
            ended = self.process.poll() is not None
            found = text in self.stdout or text in self.stderr
            assert found or not ended, f"ended with {self.process.returncode}: {self.stdout}{self.stderr}"
            return found

        wait_until(seen, timeout_s, f"{text!r}")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def outcome(self, timeout_s: float = 60.0) -> Outcome:
        """Wait for its end."""
        code = self.process.wait(timeout_s)
        return Outcome(code, self.stdout, self.stderr)

    def __enter__(self) -> RunningKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def processes_of(home: Path) -> list[psutil.Process]:
    """Living processes that carry this home in their environment."""
    return with_variable("HOME", home)


def programs_of(home: Path) -> set[str]:
    """Which of our daemons run for this home."""
    names = ("queen", "hive", "worker")
    lines = [" ".join(arguments(process)) for process in processes_of(home)]
    return {
        name
        for name in names
        for line in lines
        if f"{name}-rbee" in line or f"rbee-{name}" in line or f"rbee.{name}" in line
    }
