"""The system's OpenSSH client as the way to a node: one kept connection each, every failure told apart."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import gevent

from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.adapters.ssh_failures import RETRYABLE, SshReason, login_failed, reason_of
from rbee.queen.ports import Completed
from rbee.queen.registry import Node
from rbee.queen.retries import attempts

_KEPT_S = 30
"""An unused connection is closed after this time, should the queen be killed before it can do so."""
_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "SSH_AUTH_SOCK", "TMPDIR")
_HANDSHAKE_S = 5.0
_SOCKET_PATH_LIMIT = 80
"""Sockets may have 107 characters, of which the client takes some for a temporary name."""


class OpenSsh:
    """Runs commands on nodes through ``ssh``.

    The user's own client configuration and agent are respected; host keys are kept in a file of rbee's, which
    takes a host's first key and refuses another one later.

    Args:
        command: the client, e.g. ``ssh``.
        home: the state directory; it holds ``known_hosts``.
        environ: the queen's environment; the client sees only what it needs of it.
    """

    def __init__(self, command: str, home: Path, timing: Timing, environ: Mapping[str, str]) -> None:
        self._command = shlex.split(command)
        self._known_hosts = home / "known_hosts"
        self._run_dir = home / "run"
        self._timing = timing
        self._environ = {name: environ[name] for name in _ENVIRONMENT if name in environ}
        self._sockets: Path | None = None
        self._used: dict[str, Node] = {}
        self._log = get_logger("queen-rbee")

    def address(self, node: Node) -> str:
        return node.ssh_host

    def run(self, node: Node, argv: Sequence[str], timeout_s: float) -> Completed:
        self._refuse_bad_key(node)
        plan = attempts(self._timing.ssh_attempts, self._timing.ssh_delays_ms)
        reason = SshReason.FAILED
        for attempt in plan:
            if attempt.delay_ms:
                gevent.sleep(attempt.delay_ms / 1000)
            completed = self._run_once(node, argv, timeout_s)
            told = reason_of(completed.exit_code, completed.stderr)
            if told is None:
                return completed
            reason = told
            self._log.warning(
                "ssh_failed",
                message=completed.stderr.strip()[-300:],
                node=node.node_name,
                reason=str(reason),
                attempt=attempt.number,
            )
            if reason not in RETRYABLE:
                break
        raise login_failed(node, reason)

    def forget(self, node: Node) -> None:
        if self._used.pop(self._name(node), None) is not None:
            self._close_one(node)

    def close(self) -> None:
        """End the kept connections and remove their sockets."""
        closing = [gevent.spawn(self._close_one, node) for node in self._used.values()]
        gevent.joinall(closing, timeout=_HANDSHAKE_S)
        self._used.clear()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def options(self, node: Node) -> list[str]:
        """The client with everything that comes before the host."""
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": str(math.ceil(self._timing.ssh_connect_timeout_s)),
            "ConnectionAttempts": "1",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": _quoted(self._known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "HashKnownHosts": "no",
            "ControlMaster": "auto",
            "ControlPath": _quoted(self._socket(node)),
            "ControlPersist": str(_KEPT_S),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "RequestTTY": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "LogLevel": "ERROR",
        }
        argv = [*self._command]
        for name, value in settings.items():
            argv += ["-o", f"{name}={value}"]
        argv += ["-p", str(node.ssh_port), "-l", node.ssh_user]
        if node.ssh_key_path is not None:
            # Exactly this key: a key of the agent must not hide that the stored one does not work.
            argv += ["-o", "IdentitiesOnly=yes", "-i", node.ssh_key_path]
        return argv

    def _run_once(self, node: Node, argv: Sequence[str], timeout_s: float) -> Completed:
        self._used[self._name(node)] = node
        command = [*self.options(node), "--", node.ssh_host, shlex.join(argv)]
        # A file, not a pipe: the kept connection inherits it and would hold a pipe open.
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    command,
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                raise login_failed(node, SshReason.CLIENT_MISSING) from error
            try:
                output, _ = process.communicate(timeout=timeout_s + self._timing.ssh_connect_timeout_s)
            except subprocess.TimeoutExpired:
                return Completed(255, "", "the command timed out")
            finally:
                _end(process)
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        return Completed(process.returncode, output.decode(errors="replace"), text)

    def _close_one(self, node: Node) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*self.options(node), "-O", "exit", "--", node.ssh_host],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_HANDSHAKE_S,
                check=False,
            )

    def _socket(self, node: Node) -> Path:
        if self._sockets is None:
            short = self._run_dir if len(str(self._run_dir)) + 30 < _SOCKET_PATH_LIMIT else Path("/tmp")  # noqa: S108
            self._sockets = Path(tempfile.mkdtemp(prefix="rb", dir=short))
        return self._sockets / self._name(node)

    @staticmethod
    def _name(node: Node) -> str:
        login = f"{node.ssh_user}@{node.ssh_host}:{node.ssh_port}:{node.ssh_key_path}"
        return hashlib.sha256(login.encode()).hexdigest()[:12]

    @staticmethod
    def _refuse_bad_key(node: Node) -> None:
        if node.ssh_key_path is None:
            return
        try:
            mode = os.stat(node.ssh_key_path).st_mode
        except OSError as error:
            raise login_failed(node, SshReason.KEY_MISSING) from error
        if mode & 0o077:
            raise login_failed(node, SshReason.KEY_TOO_OPEN)


def _quoted(path: Path) -> str:
    """A path as a value of ``-o``, which splits at blanks and expands ``%``."""
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
