"""The hive of this machine as a child process of the queen."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import gevent
import psutil
from gevent.event import Event

from rbee.core.errors import BadHiveResponse, HiveStartFailed
from rbee.queen.adapters.hive_answers import read_capabilities
from rbee.queen.ports import Capabilities, HiveProcess
from rbee.queen.registry import Node

_LINES_KEPT = 20
_GONE_POLL_S = 0.05
_DETECT_TIMEOUT_S = 30.0


class LocalHive:
    """Starts ``rbee-hive`` in a session of its own, so that a terminal's Ctrl+C reaches the keeper alone.

    Args:
        identity: the queen's, the owner of the hive.
        environ: the hive's environment; it carries the fleet key, the arguments never do.
        config: the queen's ``--config``, if it was given.
    """

    def __init__(self, identity: str, environ: Mapping[str, str], config: str | None) -> None:
        self._identity = identity
        self._environ = dict(environ)
        self._config = config
        self._process: subprocess.Popen[str] | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._news = Event()

    def start(self, node: Node, port: int) -> HiveProcess:
        """Start it on ``port``, or on a free port where that one is taken."""
        port = free_port(node.ssh_host, port)
        argv = [*hive_command(), "daemon", "--addr", f"{node.ssh_host}:{port}", "--owner", self._identity]
        if self._config is not None:
            argv += ["--config", self._config]
        self._news = Event()
        self._lines = collections.deque(maxlen=_LINES_KEPT)
        try:
            self._process = subprocess.Popen(
                argv,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise HiveStartFailed(node.ssh_host, f"{argv[0]}: {error.strerror}") from error
        gevent.spawn(self._read, self._process, self._news, self._lines)
        return HiveProcess(port, self._process.pid)

    def pause(self, node: Node, timeout_s: float) -> None:  # noqa: ARG002 (one node only)
        if self._news.wait(timeout_s):
            # The news is used up: later pauses, if any, last their whole time.
            self._news = Event()

    def failure(self, node: Node) -> str | None:  # noqa: ARG002
        if self._process is None or self._process.poll() is None:
            return None
        told = next((line for line in reversed(self._lines) if line.startswith("Error:")), None)
        told = told or (self._lines[-1] if self._lines else "no output")
        return f"it exited with status {self._process.returncode}: {told.removeprefix('Error:').strip()}"

    def detect(self, node: Node) -> Capabilities:
        argv = [*hive_command(), "detect", *(["--config", self._config] if self._config else [])]
        try:
            done = subprocess.run(
                argv,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DETECT_TIMEOUT_S,
                check=True,
            )
            return read_capabilities(json.loads(done.stdout))
        except (OSError, subprocess.SubprocessError) as error:
            raise HiveStartFailed(node.ssh_host, f"rbee-hive detect: {type(error).__name__}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise BadHiveResponse(node.ssh_host) from error

    def signal(self, node: Node, pid: int, number: int) -> None:  # noqa: ARG002
        if not self._is_gone(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def wait_gone(self, node: Node, pid: int, timeout_s: float) -> bool:  # noqa: ARG002
        deadline = time.monotonic() + timeout_s
        while not self._is_gone(pid):
            if time.monotonic() >= deadline:
                return False
            gevent.sleep(_GONE_POLL_S)
        return True

    def _is_gone(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is not None
        try:
            # The hive of an earlier queen: no child of ours, and its pid may be somebody else's by now.
            process = psutil.Process(pid)
            is_hive = any("hive" in word for word in process.cmdline())
            return not is_hive or process.status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return True

    @staticmethod
    def _read(process: subprocess.Popen[str], news: Event, lines: collections.deque[str]) -> None:
        """Read what it prints for as long as it runs: an unread pipe would block it one day."""
        stream = process.stdout
        if stream is not None:
            with stream, contextlib.suppress(OSError, ValueError):
                for line in stream:
                    lines.append(line.rstrip())
                    if "listening on" in line:
                        news.set()
        process.wait()
        news.set()


def hive_command() -> list[str]:
    """The hive program of this installation."""
    script = Path(sys.executable).with_name("rbee-hive")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "rbee.hive"]


def is_listening(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def free_port(host: str, preferred: int) -> int:
    """``preferred`` if nothing listens there, else a port the system picks."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise HiveStartFailed(host, "no free port")
