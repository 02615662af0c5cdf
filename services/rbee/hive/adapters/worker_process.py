"""Starts worker programs as child processes that cannot outlive the hive, and reads what they narrate."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import gevent
from gevent import subprocess

from rbee.core.errors import WorkerStartFailed
from rbee.core.logs import ROTATE_BYTES
from rbee.core.processes import die_with_parent, kill_group, started_at
from rbee.core.settings import WORKER_SETTINGS_VARIABLE, Settings
from rbee.hive.ports import WORKER_ID_VARIABLE, Narrator, WorkerOrder

DEFAULT_COMMAND = "llm-worker-rbee"
LONGEST_LINE = 65536
KEPT_LOGS = 200
TAIL_BYTES = 65536
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.I)
_NOT_FOR_WORKERS = ("RBEE_CONFIG", "RBEE_QUEEN_URL", "MOCK_SSH")


def worker_command(setting: str) -> list[str]:
    """The argv that starts a worker: the setting split like a shell would, or our own program."""
    if setting != DEFAULT_COMMAND:
        return shlex.split(setting)
    beside = Path(sys.executable).with_name(DEFAULT_COMMAND)
    return [str(beside)] if beside.is_file() else [sys.executable, "-P", "-m", "rbee.worker"]


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker inherits: the hive's environment without secrets."""
    kept = {
        name: value
        for name, value in environ.items()
        if not _SECRET_NAME.search(name) and name not in _NOT_FOR_WORKERS
    }
    return {
        **kept,
        # The order of the driver, in which the device probe counts; CUDA's own default is by speed.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONUNBUFFERED": "1",
    }


def remove_key(run_dir: Path, worker_id: str) -> None:
    """Remove the key file of a worker that is gone."""
    _key_path(run_dir, worker_id).unlink(missing_ok=True)


class ChildWorkerLauncher:
    """Implements WorkerLauncher with child processes.

    Args:
        host: the address workers listen on.
        callback_url: where they report that their HTTP is up.
        environ: the hive's own environment.
    """

    def __init__(
        self, settings: Settings, *, host: str, callback_url: str, environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._command = worker_command(settings.pool.worker_command)
        self._environment = worker_environment(environ)
        self._host, self._callback_url = host, callback_url
        self._run_dir, self._log_dir = settings.run_dir, settings.log_dir

    def check(self) -> None:
        if not self._command or shutil.which(self._command[0], path=self._environment.get("PATH")) is None:
            program = self._command[0] if self._command else ""
            raise WorkerStartFailed(f"the program {program!r} (pool.worker_command) was not found")

    def launch(self, order: WorkerOrder, narrate: Narrator) -> ChildWorker:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._drop_old_logs()
        log_path = self.log_path(order.worker_id)
        self._write_key(order)
        try:
            with log_path.open("ab", buffering=0) as log:
                # The fork has to happen in the main thread: the kernel ties a child's death signal to the
                # thread that made it. Everything cooperative in this process runs there.
                process = subprocess.Popen(
                    [*self._command, *self._arguments(order)],
                    env={
                        **self._environment,
                        WORKER_ID_VARIABLE: order.worker_id,
                        WORKER_SETTINGS_VARIABLE: self._settings.for_worker(order.slots),
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            self.forget(order.worker_id)
            raise WorkerStartFailed(
                f"{self._command[0]}: {error.strerror or type(error).__name__}", log_path=str(log_path)
            ) from None
        return ChildWorker(process, log_path, narrate)

    def log_path(self, worker_id: str) -> Path:
        return self._log_dir / f"{worker_id}.log"

    def last_lines(self, worker_id: str, count: int) -> list[str]:
        try:
            with self.log_path(worker_id).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - TAIL_BYTES))
                text = log.read(TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        return list(deque((line for line in text.splitlines() if line.strip()), maxlen=count))

    def bound_log(self, worker_id: str) -> None:
        """Copy and cut: the worker holds the file open, and appends to whatever its length is."""
        path = self.log_path(worker_id)
        with contextlib.suppress(OSError):
            if path.stat().st_size > ROTATE_BYTES:
                shutil.copyfile(path, path.with_name(path.name + ".1"))
                os.truncate(path, 0)

    def forget(self, worker_id: str) -> None:
        remove_key(self._run_dir, worker_id)

    def _arguments(self, order: WorkerOrder) -> list[str]:
        values = {
            "--worker-id": order.worker_id,
            "--model": str(order.model_folder),
            "--model-ref": order.model_ref,
            "--backend": order.backend,
            "--device": str(order.device),
            "--port": str(order.port),
            "--host": self._host,
            "--callback-url": self._callback_url,
            "--api-key": f"@{_key_path(self._run_dir, order.worker_id)}",
        }
        return [text for pair in values.items() for text in pair]

    def _write_key(self, order: WorkerOrder) -> None:
        path = _key_path(self._run_dir, order.worker_id)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
            file.write(order.key + "\n")

    def _drop_old_logs(self) -> None:
        """Every worker has a file of its own; only the latest are kept."""
        logs = sorted(self._log_dir.glob("worker-*.log*"), key=_modified)
        for path in logs[: max(0, len(logs) - KEPT_LOGS + 1)]:
            with contextlib.suppress(OSError):
                path.unlink()


class ChildWorker:
    """Implements WorkerProcess for a child of this process."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path, narrate: Narrator) -> None:
        self._process = process
        self.pid = process.pid
        self.started = started_at(process.pid) or time.time()
        self._reader = gevent.spawn(_read_output, cast(IO[bytes], process.stdout), log_path, narrate)

    def wait(self) -> int:
        status = self._process.wait()
        # The pipe stays open as long as anything of the group lives.
        if self._reader is not gevent.getcurrent():
            kill_group(self.pid, signal.SIGKILL)
            self._reader.join(timeout=1.0)
            self._reader.kill(block=True, timeout=1.0)
        return status

    def signal_group(self, number: int) -> bool:
        return kill_group(self.pid, number)


def _read_output(stdout: IO[bytes], log_path: Path, narrate: Narrator) -> None:
    """Pass on narration lines; everything else a worker prints goes to its log.

    It reads on whatever happens, a full disk for one: a worker whose output nobody takes would halt.
    """
    with stdout:
        while line := stdout.readline(LONGEST_LINE):
            story = _narration(line)
            if story is not None:
                narrate(*story)
                continue
            with contextlib.suppress(OSError), log_path.open("ab") as log:
                log.write(line)


def _narration(line: bytes) -> tuple[str, str, str] | None:
    if not line.startswith(b"{"):
        return None
    try:
        fields: Any = json.loads(line)
        if fields["type"] != "narration":
            return None
        return str(fields["actor"]), str(fields["action"]), str(fields["human"])
    except (ValueError, KeyError, TypeError):
        return None


def _key_path(run_dir: Path, worker_id: str) -> Path:
    return run_dir / f"{worker_id}.key"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
