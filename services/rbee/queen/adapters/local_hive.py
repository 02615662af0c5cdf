"""The hive of this machine as a child process of the queen."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from typing import IO

import gevent
import psutil
from gevent.event import Event
from gevent.fileobject import FileObject

from rbee.core.errors import BadHiveResponse, HiveStartFailed
from rbee.queen.adapters.hive_answers import read_capabilities
from rbee.queen.adapters.hive_child import HiveChild, hive_command, launch_hive
from rbee.queen.ports import Capabilities, HiveProcess
from rbee.queen.registry import Node

_LINES_KEPT = 20
_GONE_POLL_S = 0.05
_DETECT_TIMEOUT_S = 30.0


class LocalHive:
    """Starts the hive of this machine and follows what becomes of it.

    Args:
        identity: the queen's, the owner of the hive.
        environ: the hive's environment.
        config: the queen's ``--config``, if it was given.
    """

    def __init__(self, identity: str, environ: Mapping[str, str], config: str | None) -> None:
        self._identity = identity
        self._environ = dict(environ)
        self._config = config
        self._running: _Child | _Sibling | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._news = Event()

    def start(self, node: Node, port: int) -> HiveProcess:
        """Start it on ``port``, or on a free port where that one is taken."""
        child = launch_hive(node.ssh_host, port, self._identity, self._environ, self._config)
        return self._follow(_Child(child.process), child.port, child.process.stdout)

    def adopt(self, child: HiveChild) -> HiveProcess:
        """Take over a hive that the parent of this process has launched."""
        output = child.process.stdout
        # Made before gevent came into this process: read as it is, it would hold all greenlets up.
        patient = FileObject(os.dup(output.fileno()), "r", errors="replace") if output else None
        return self._follow(_Sibling(child.process.pid), child.port, patient)

    def _follow(self, running: _Child | _Sibling, port: int, output: IO[str] | None) -> HiveProcess:
        self._news = Event()
        self._lines = collections.deque(maxlen=_LINES_KEPT)
        self._running = running
        if output is not None:
            gevent.spawn(self._read, output, running, self._news, self._lines)
        return HiveProcess(port, running.pid)

    def pause(self, node: Node, timeout_s: float) -> None:  # noqa: ARG002 (one node only)
        if self._news.wait(timeout_s):
            # The news is used up: later pauses, if any, last their whole time.
            self._news = Event()

    def failure(self, node: Node) -> str | None:  # noqa: ARG002
        if self._running is None or not self._running.is_gone():
            return None
        told = next((line for line in reversed(self._lines) if line.startswith("Error:")), None)
        told = told or (self._lines[-1] if self._lines else "no output")
        return f"it exited{self._running.status()}: {told.removeprefix('Error:').strip()}"

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
        if self._running is not None and self._running.pid == pid:
            return self._running.is_gone()
        return _Sibling(pid).is_gone()

    @staticmethod
    def _read(
        output: IO[str], running: _Child | _Sibling, news: Event, lines: collections.deque[str]
    ) -> None:
        """Read what it prints for as long as it runs: an unread pipe would block it one day."""
        with output, contextlib.suppress(OSError, ValueError):
            for line in output:
                lines.append(line.rstrip())
                if "listening on" in line:
                    news.set()
        while not running.is_gone():
            gevent.sleep(_GONE_POLL_S)
        news.set()


class _Child:
    """A hive that this process has launched, and whose exit status it gets."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def status(self) -> str:
        return f" with status {self._process.returncode}"


class _Sibling:
    """A hive that another process launched: this daemon's arbiter, or an earlier queen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def is_gone(self) -> bool:
        try:
            # Its pid may be somebody else's by now.
            process = psutil.Process(self.pid)
            is_hive = any("hive" in word for word in process.cmdline())
            return not is_hive or process.status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return True

    def status(self) -> str:
        return ""
