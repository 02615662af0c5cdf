"""Starts a queen process, waits until it serves, and ends it with everything that came up below it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rbee_keeper.failures import KeeperFailure

if TYPE_CHECKING:
    import psutil

PROGRAM = "queen-rbee"
STDERR_LOG = "queen-rbee.stderr.log"
_ANNOUNCED = re.compile(rf"{PROGRAM} listening on (http://\S+)")
_POLL_S = 0.01
_LOG_LIMIT_BYTES = 1024 * 1024
_KILL_WAIT_S = 5.0


class QueenStartFailed(KeeperFailure):
    """The process ended before it served, or did not serve in time."""


def queen_command(arguments: Sequence[str]) -> list[str]:
    """The queen of this Python environment: its program, or the module where no program is installed."""
    program = Path(sys.executable).parent / PROGRAM
    if os.access(program, os.X_OK):
        return [str(program), *arguments]
    return [sys.executable, "-m", "rbee.queen", *arguments]


class QueenProcess:
    """A running queen in a session of its own, so that a Ctrl+C at the terminal does not reach it.

    Args:
        arguments: the queen's own flags.
        environ: its environment.
        run_dir: for its output while it starts (removed at once).
        log_dir: takes what it writes to standard error.
        is_child: its standard input is a pipe from this process, whose end tells it that we are gone; and
            what it leaves behind when it dies becomes ours to end. False: it is meant to outlive us.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        run_dir: Path,
        log_dir: Path,
        is_child: bool,
    ) -> None:
        self._is_child = is_child
        self._log = _open_log(log_dir / STDERR_LOG)
        self._log_start = os.fstat(self._log).st_size
        self._output = _open_unnamed(run_dir / f"queen-{os.getpid()}.out")
        try:
            self._process = subprocess.Popen(
                queen_command(arguments),
                env=dict(environ),
                stdin=subprocess.PIPE if is_child else subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._close_files()
            raise QueenStartFailed(f"{PROGRAM} could not be started: {error}") from None
        if is_child:
            _adopt_orphans()
        self.log_path = log_dir / STDERR_LOG

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, timeout_s: float) -> str:
        """The URL it announces.

        Raises:
            QueenStartFailed: it ended, with its own reason, or said nothing within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ended = not self.is_running
            match = _ANNOUNCED.search(os.pread(self._output, 8192, 0).decode("utf-8", "replace"))
            if match:
                return match.group(1)
            if ended:
                raise QueenStartFailed(f"{PROGRAM} could not be started: {self._reason()}")
            if time.monotonic() > deadline:
                raise QueenStartFailed(
                    f"{PROGRAM} did not start within {timeout_s:g} seconds",
                    details=(f"Log: {self.log_path}",),
                )
            time.sleep(_POLL_S)

    def stop(self, *, patience_s: float, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """End it by its own cascade; after ``patience_s``, or when hurried, by force; nothing below stays."""
        deadline = time.monotonic() + patience_s
        if self.is_running:
            self._process.terminate()
        while self.is_running and time.monotonic() < deadline and not is_hurried():
            time.sleep(_POLL_S)
        if self.is_running:
            _kill_tree(self.pid)
        if self._is_child:
            _end_orphans(deadline, is_hurried)
            self._release_pipe()
        self._close_files()

    def release(self) -> None:
        """Let go of a queen that stays."""
        self._close_files()
        self._release_pipe()
        # It is not ours to wait for: without this the interpreter warns about a child that still runs.
        self._process.returncode = 0

    def _reason(self) -> str:
        """Why it ended: its own ``Error:`` line, else the last thing it wrote."""
        size = os.fstat(self._log).st_size - self._log_start
        with open(self.log_path, "rb") as file:
            file.seek(self._log_start)
            lines = file.read(size).decode("utf-8", "replace").splitlines()
        told = [line for line in lines if line.strip()]
        for line in told:
            if line.startswith("Error: "):
                return line.removeprefix("Error: ")
        return told[-1].strip() if told else f"it ended with status {self._process.returncode}"

    def _release_pipe(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _close_files(self) -> None:
        for descriptor in (self._output, self._log):
            try:
                os.close(descriptor)
            except OSError:
                continue
        self._output = self._log = -1


def _open_log(path: Path) -> int:
    """Open for appending; what has grown over the limit starts anew."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.fstat(descriptor).st_size > _LOG_LIMIT_BYTES:
        os.ftruncate(descriptor, 0)
    return descriptor


def _open_unnamed(path: Path) -> int:
    """A file without a name: it cannot fill up like a pipe, and is gone with its last user."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    path.unlink()
    return descriptor


def _adopt_orphans() -> None:
    """Have what a dead queen leaves behind handed to this process instead of to init (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, listed before any of them dies."""
    import psutil

    try:
        root = psutil.Process(pid)
        _kill([root, *root.children(recursive=True)])
    except psutil.NoSuchProcess:
        return


def _end_orphans(deadline: float, is_hurried: Callable[[], bool]) -> None:
    """End what is still below this process after its queen has gone, in order if there is time."""
    if _has_no_children():
        return
    import psutil

    me = psutil.Process()
    asked: set[int] = set()
    while left := [process for process in me.children(recursive=True) if _is_alive(process)]:
        if is_hurried() or time.monotonic() > deadline:
            _kill(left)
            return
        for process in me.children():
            if process.pid not in asked:
                asked.add(process.pid)
                _signal(process, signal.SIGTERM)
        psutil.wait_procs(left, timeout=0.05)


def _has_no_children() -> bool:
    """Whether no process is left below us; also collects those that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return True
    return False


def _kill(processes: list[psutil.Process]) -> None:
    import psutil

    for process in processes:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=_KILL_WAIT_S)


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: int) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
