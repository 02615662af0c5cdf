"""Fetches, converts and verifies models in child processes, whose memory and crashes are not the hive's."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import gevent
from gevent import subprocess

from rbee.core.errors import (
    DownloadFailed,
    InternalError,
    RbeeError,
    ServiceUnavailable,
    error_from_fields,
)
from rbee.core.logs import get_logger
from rbee.core.processes import die_with_parent, kill_group
from rbee.core.references import ModelRef
from rbee.core.settings import Settings
from rbee.hive.adapters.device_probe import MachineProbe
from rbee.hive.local_models import LocalModel
from rbee.hive.preflight import required_mb
from rbee.hive.shared_work import OnEvent
from rbee.hive.threads import in_thread
from rbee.models.provisioner_command import convert_argv, fetch_argv, quality_argv, verify_argv

log = get_logger("model-provisioner")

_END_TIMEOUT_S = 3.0
_LONGEST_LINE = 65536
_WITHHELD = ("RBEE_API_KEY",)


class ProvisionerProcess:
    """Implements Provisioner.

    Args:
        environ: the hive's environment; HF_* and PIP_* settings reach the child, the fleet key does not.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._probe = MachineProbe()
        self._environment = {name: value for name, value in environ.items() if name not in _WITHHELD}
        # "python -m" would look for modules in whatever folder the hive was started in.
        self._environment["PYTHONSAFEPATH"] = "1"
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def fetch(self, ref: ModelRef, on_event: OnEvent) -> Path:
        timing = self._settings.timing
        argv = fetch_argv(
            ref,
            **self._where(),
            attempts=timing.download_attempts,
            delays_ms=timing.download_delays_ms,
            stall_timeout_s=timing.download_stall_timeout_s,
        )
        try:
            return self._run(argv, str(ref), on_event)
        except _NoResult as died:
            raise DownloadFailed(1, f"the download process {died.reason}") from died

    def convert(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> Path:
        available_mb = self._probe.ram_available_mb()
        argv = convert_argv(ref, local.path, compute_type, **self._where())
        try:
            return self._run(argv, str(ref), on_event)
        except _NoResult as died:
            if died.was_killed:
                raise _out_of_memory(local, compute_type, available_mb) from died
            raise InternalError(
                f"The conversion {died.reason}", details={"exit_status": died.status}
            ) from died

    def measure_quality(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> None:
        available_mb = self._probe.ram_available_mb()
        argv = quality_argv(ref, local.path, compute_type, **self._where())
        try:
            self._run(argv, str(ref), on_event)
        except _NoResult as died:
            if died.was_killed:
                raise _out_of_memory(local, compute_type, available_mb) from died
            raise InternalError(
                f"The comparison {died.reason}", details={"exit_status": died.status}
            ) from died

    def verify(self, ref: ModelRef | None, on_event: OnEvent) -> None:
        try:
            self._run(verify_argv(ref, **self._where()), "all" if ref is None else str(ref), on_event)
        except _NoResult as died:
            raise InternalError(
                f"The verification {died.reason}", details={"exit_status": died.status}
            ) from died

    def close(self) -> None:
        self._is_closed = True
        for process in self._running:
            kill_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_TIMEOUT_S
        for process in list(self._running):
            try:
                process.wait(timeout=max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning(
                    "forced_kill", message="a provisioner did not end", pid=process.pid, signal="SIGKILL"
                )
                kill_group(process.pid, signal.SIGKILL)

    def _where(self) -> dict[str, Path]:
        return {"models_dir": self._settings.models_dir, "catalog_db": self._settings.catalog_db}

    def _run(self, argv: Sequence[str], model_ref: str, on_event: OnEvent) -> Path:
        """Run one child to its end and give the path that it reported.

        Raises:
            RbeeError: what it reported instead.
            _NoResult: it ended without a report.
        """
        self._refuse_when_closed()
        process = self._start(argv)
        stderr = _Stderr(model_ref)
        copying = gevent.spawn(stderr.copy, process.stderr)
        try:
            final = _read_events(process.stdout, on_event)
            status = process.wait()
        finally:
            # Also its own children, such as pip; they hold the pipes open.
            kill_group(process.pid, signal.SIGKILL)
            process.wait()
            self._running.discard(process)
            copying.join(timeout=1.0)
            copying.kill()
            process.stdout.close()
        if final is None:
            self._refuse_when_closed()
            raise _NoResult(status, stderr.last_line)
        if "error" in final:
            self._refuse_when_closed()
            raise error_from_fields(final["error"])
        return Path(final["local_path"])

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                list(argv),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            raise InternalError(f"The provisioner could not be started: {error.strerror}") from error
        self._running.add(process)
        return process

    def _refuse_when_closed(self) -> None:
        if self._is_closed:
            raise ServiceUnavailable("rbee-hive is shutting down")


class _NoResult(Exception):
    """The child ended without its last line."""

    def __init__(self, status: int, last_line: str) -> None:
        self.status = status
        self.was_killed = status == -signal.SIGKILL
        if self.was_killed:
            self.reason = "was killed by the system (SIGKILL), most likely because memory ran out"
        elif status < 0:
            self.reason = f"was ended by {_signal_name(-status)}"
        else:
            self.reason = f"ended with exit status {status} and without a result"
        if last_line and not self.was_killed:
            self.reason += f": {last_line[:200]}"
        super().__init__(self.reason)


@dataclass
class _Stderr:
    """Copies what a child writes to standard error into the hive's log."""

    model_ref: str
    last_line: str = field(default="")

    def copy(self, pipe: IO[bytes]) -> None:
        with pipe:
            while raw := pipe.readline(_LONGEST_LINE):
                text = raw.decode("utf-8", "replace").strip()
                if text:
                    self.last_line = text
                    write = log.warning if text.startswith(("ERROR", "CRITICAL", "WARNING")) else log.info
                    write("provisioner_output", message=text, model_ref=self.model_ref)


def _read_events(pipe: IO[bytes], on_event: OnEvent) -> dict[str, Any] | None:
    """Pass progress and narration on; the last line, once it came."""
    final: dict[str, Any] | None = None
    while raw := pipe.readline(_LONGEST_LINE):
        try:
            line = json.loads(raw)
            stage = line.get("stage")
        except (ValueError, AttributeError):
            log.warning("provisioner_output", message="a line that is no event")
            continue
        if "narration" in line:
            told = line["narration"]
            log.info("narration", message=told["human"], action=told["action"])
            on_event({"event": "narration", "data": told})
        elif stage in ("complete", "error"):
            final = line
        else:
            on_event({"event": "progress", "data": line})
    return final


def _out_of_memory(local: LocalModel, compute_type: str, available_mb: int) -> RbeeError:
    """The error for a conversion that the kernel killed, with the amounts that speak for this cause."""

    def estimate() -> int:
        from rbee.models.compute_types import estimate_converted_bytes
        from rbee.models.gguf_file import read_gguf

        return required_mb(estimate_converted_bytes(read_gguf(local.path), compute_type))

    needed_mb = in_thread(estimate)
    return error_from_fields(
        {
            "code": "VRAM_EXHAUSTED",
            "message": "The conversion was killed by the system, most likely because memory ran out: "
            f"the model needs {needed_mb} MB, {available_mb} MB were available when it began",
            "details": {"required": needed_mb, "available": available_mb, "resource": "ram"},
            "suggestion": "Try a smaller quantized model (Q4 instead of Q8)",
        }
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
