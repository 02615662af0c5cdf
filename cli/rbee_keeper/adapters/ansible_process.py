"""One ansible-runner run in a process of its own: a request comes in, a JSON line per event goes out.

ansible-runner takes over signal handlers, and its own way to cancel kills the process group, which leaves
Ansible's workers (each in a session of its own) and what they started running. So SIGTERM, and the end of
standard input when the keeper dies, are passed on to ansible-playbook, which ends its workers itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, TextIO

GRACE_S = 10.0
"""After this time ansible-playbook is killed by ansible-runner."""
_FIELDS = ("host", "task", "play", "res", "ignore_errors")
_COUNTS = ("ok", "changed", "failures", "dark", "skipped", "rescued", "ignored")
_RESULT_FIELDS = ("stderr", "module_stderr", "msg", "stdout", "censored", "changed", "rc")


class Run:
    """A run and its cancellation."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._stats: dict[str, Any] = {}
        self._canceled_at: float | None = None

    def cancel(self, *_: object) -> None:
        """Ask ansible-playbook to end; safe to call again."""
        if self._canceled_at is None:
            self._canceled_at = time.monotonic()
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def carry_out(self, request: dict[str, Any], folder: Path) -> None:
        """Run the playbook; the last line written is ``{"done": …}``.

        Args:
            request: ``playbook``, ``inventory``, ``extravars``, ``arguments`` and ``config`` (ansible.cfg).
            folder: a private folder for everything ansible-runner and ssh write.
        """
        import ansible_runner

        (folder / "ssh").mkdir(mode=0o700)
        variables = {
            "ANSIBLE_CONFIG": request["config"],
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "ssh"),
        }
        done = ansible_runner.run(
            private_data_dir=str(folder),
            playbook=request["playbook"],
            inventory=request["inventory"],
            extravars=request["extravars"],
            cmdline=" ".join(request["arguments"]) or None,
            envvars=variables,
            quiet=True,
            suppress_env_files=True,
            event_handler=self._tell_event,
            cancel_callback=self._is_overdue,
        )
        status = "canceled" if self._canceled_at is not None else done.status
        self._tell({"done": status, "exit_code": done.rc, "stats": self._stats})

    def _is_overdue(self) -> bool:
        return self._canceled_at is not None and time.monotonic() - self._canceled_at > GRACE_S

    def _tell_event(self, event: dict[str, Any]) -> bool:
        data = event.get("event_data", {})
        if event["event"] == "playbook_on_stats":
            self._stats = {name: data.get(name, {}) for name in _COUNTS}
        told = {name: data[name] for name in _FIELDS if name in data}
        result = told.get("res")
        if isinstance(result, dict):
            told["res"] = {name: result[name] for name in _RESULT_FIELDS if name in result}
        self._tell({"event": event["event"], "stdout": event.get("stdout", ""), "data": told})
        # Kept nowhere else: ansible-runner would write a file for each event.
        return False

    def _tell(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(line, default=str), file=self._output, flush=True)


def main() -> int:
    # Nothing but our lines may get to the real standard output.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run = Run(output)
    signal.signal(signal.SIGTERM, run.cancel)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_cancel_at_end, args=(sys.stdin, run), daemon=True).start()
    # Short, because sockets of ssh lie below it.
    folder = Path(tempfile.mkdtemp(prefix="rb-"))
    try:
        run.carry_out(request, folder)
    finally:
        _end_connections(folder / "ssh")
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _cancel_at_end(stdin: TextIO, run: Run) -> None:
    """The keeper holds standard input open; it ends with the keeper, however that ends."""
    stdin.read()
    run.cancel()


def _children() -> list[int]:
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=False
    ).stdout.split()
    pairs = zip(listing[::2], listing[1::2], strict=True)
    return [int(pid) for pid, parent in pairs if int(parent) == os.getpid()]


def _end_connections(folder: Path) -> None:
    """End the ssh connections kept open between tasks."""
    for socket in folder.glob("*"):
        subprocess.run(
            ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "node"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GRACE_S,
            check=False,
        )


if __name__ == "__main__":
    sys.exit(main())
