"""Runs programs as a user would and keeps what they printed, line by line with its time."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")
POLL_S = 0.1


@dataclass(frozen=True)
class CommandResult:
    """What a finished command left: nothing of it can be changed afterwards."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float
    started_unix: float
    pid: int
    first_text_unix: float | None
    """When the first bytes of standard output were read; None when there were none, or a file took them."""

    def stream(self, name: str) -> str:
        return {"stdout": self.stdout, "stderr": self.stderr}[name]

    def json(self) -> Any:
        """Standard output as JSON.

        Raises:
            AssertionError: it is not.
        """
        try:
            return json.loads(self.stdout)
        except ValueError:
            raise AssertionError(f"stdout is not JSON\n{self}") from None

    def __str__(self) -> str:
        command = " ".join(self.argv)
        printed = f"--- stdout\n{self.stdout}--- stderr\n{self.stderr}"
        return f"{command}\nexit code {self.exit_code}\n{printed}"


class RunningCommand:
    """A command that is still running; its output so far can be read at any time.

    Args:
        stdout_file: takes standard output instead of a pipe, as ``> file`` does.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        stdout_file: Path | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.started_unix = time.time()
        self._started = time.monotonic()
        self._stdout_file = stdout_file
        sink = stdout_file.open("wb") if stdout_file else None
        try:
            self.process = subprocess.Popen(
                argv,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink or subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            if sink:
                sink.close()
        self._first_text_unix: float | None = None
        self._pieces: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(stream, self._pieces[name]), daemon=True)
            for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, source: IO[bytes], sink: list[bytes]) -> None:
        with source:
            while piece := source.read1(65536):  # type: ignore[attr-defined]
                if source is self.process.stdout and self._first_text_unix is None:
                    self._first_text_unix = time.time()
                sink.append(piece)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        raw = self._stdout_file.read_bytes() if self._stdout_file else b"".join(self._pieces["stdout"])
        return raw.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return b"".join(self._pieces["stderr"]).decode(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """Poll like ``wait_until``, but give up as soon as the command has ended.

        Raises:
            AssertionError: it did not come about.
        """

        def reached() -> T:
            was_running = self.is_running
            value = condition()
            assert value or was_running, f"the command ended without {what}:\n{self.finish()}"
            return value

        return wait_until(reached, timeout_s, what)

    def finish(self, timeout_s: float = 400.0) -> CommandResult:
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
            duration,
            self.started_unix,
            self.process.pid,
            self._first_text_unix,
        )

    def ask_to_end(self) -> None:
        """Send SIGTERM, also to one that was stopped."""
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)

    def await_end(self, timeout_s: float = 45.0) -> None:
        """Wait until it is gone; kill it when it takes too long."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        for reader in self._readers:
            reader.join(1)


def wait_until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """Poll until ``condition`` gives something true.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s")
        time.sleep(POLL_S)
    return value
