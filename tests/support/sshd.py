"""A real OpenSSH server on a loopback address that stands for one node; every command is recorded."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from support.daemons import wait_until

INSTALL_HINT = "OpenSSH's server is needed: apt-get install openssh-server"


class SshdMissing(Exception):
    """sshd or ssh-keygen is not installed."""


def find_sshd() -> str:
    """The path of sshd.

    Raises:
        SshdMissing: it is not installed; the text says how to install it.
    """
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found or not shutil.which("ssh-keygen"):
        raise SshdMissing(INSTALL_HINT)
    return found


def make_key(path: Path) -> Path:
    """An Ed25519 key pair without passphrase; returns the private key's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Command:
    """One command that a login asked for, as the server saw it."""

    unix: float
    user: str
    command: str


class SshNode:
    """An sshd of the current user; logins run in the node's own home with the node's own environment.

    Args:
        folder: everything of this node lies here: host key, configuration, home, logs.
        authorized: public key files that may log in.
        environment: variables of every command on the node (``HOME`` and ``PATH`` are set).
        host: a loopback address.
    """

    def __init__(
        self,
        folder: Path,
        authorized: list[Path],
        *,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self.sshd = find_sshd()
        self.folder = folder
        self.home = folder / "home"
        self.host = host
        self.port = port or free_port(host)
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.log = folder / "sshd.log"
        self._commands = folder / "commands.jsonl"
        self._process: subprocess.Popen[bytes] | None = None
        self.home.mkdir(parents=True, exist_ok=True)
        self._environment = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            **(environment or {}),
        }
        keys = folder / "authorized_keys"
        keys.write_text("".join(path.with_suffix(".pub").read_text() for path in authorized))
        keys.chmod(0o600)
        if not (folder / "host_key").exists():
            make_key(folder / "host_key")
        self._write_configuration(keys)

    def _write_configuration(self, keys: Path) -> None:
        recorder = self.folder / "recorder"
        recorder.write_text(_recorder(self._commands, self._environment, self.home))
        recorder.chmod(0o755)
        lines = [
            f"ListenAddress {self.host}:{self.port}",
            f"HostKey {self.folder / 'host_key'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            f"AuthorizedKeysFile {keys}",
            f"ForceCommand {recorder}",
            # Else the start-up files of whoever runs the tests are run by the shell of each login.
            f"SetEnv HOME={self.home}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "MaxStartups 100",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
        ]
        if self._version() >= (9, 8):
            lines.append("PerSourcePenalties no")
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")

    def _version(self) -> tuple[int, int]:
        shown = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
        match = re.search(r"OpenSSH_(\d+)\.(\d+)", shown)
        return (int(match.group(1)), int(match.group(2))) if match else (0, 0)

    def start(self) -> SshNode:
        """Start the server and wait until it accepts connections."""
        if os.getuid() == 0:
            # A server of root separates privileges in this folder; Debian makes it at boot only.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.out").open("ab") as sink:
            self._process = subprocess.Popen(
                [self.sshd, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.log)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        wait_until(self._accepts, 10, f"sshd on {self.host}:{self.port}")
        return self

    def _accepts(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(
                f"sshd ended: {(self.folder / 'sshd.out').read_text()} {self.log.read_text()}"
            )
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and the logins it serves; what these have started in sessions of their own stays."""
        if self._process is None:
            return
        logins = [p for p in psutil.Process(self._process.pid).children(recursive=True) if "sshd" in p.name()]
        self._process.send_signal(signal.SIGTERM)
        for login in logins:
            with contextlib.suppress(psutil.NoSuchProcess):
                login.kill()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def change_host_key(self) -> None:
        """Give the node another identity, as a reinstalled machine would have."""
        self.stop()
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        make_key(self.folder / "host_key")
        self.start()

    @property
    def commands(self) -> list[Command]:
        """Every command that logins asked for, oldest first."""
        if not self._commands.exists():
            return []
        rows = (json.loads(line) for line in self._commands.read_text().splitlines())
        return [Command(row["unix"], row["user"], row["command"]) for row in rows]

    @property
    def logins(self) -> list[tuple[str, str]]:
        """User and key fingerprint of every accepted login."""
        text = self.log.read_text() if self.log.exists() else ""
        return re.findall(r"Accepted publickey for (\S+) from \S+ port \d+ ssh2: \S+ (SHA256:\S+)", text)

    def __enter__(self) -> SshNode:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _recorder(commands: Path, environment: Mapping[str, str], home: Path) -> str:
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    note = (
        "import json,os,sys,time;"
        "row={'unix':time.time(),'user':os.environ.get('USER',''),'command':os.environ.get('SSH_ORIGINAL_COMMAND','')};"
        "open(sys.argv[1],'a').write(json.dumps(row)+chr(10))"
    )
    return f"""#!/bin/sh
{shlex.quote(sys.executable)} -S -E -c {shlex.quote(note)} {shlex.quote(str(commands))}
cd {shlex.quote(str(home))} || exit 1
exec env -i USER="$USER" LOGNAME="$LOGNAME" SSH_CONNECTION="$SSH_CONNECTION" \\
    {settings} /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


def fingerprint(public_key: Path) -> str:
    """The SHA256 fingerprint of a public key, as server logs name it."""
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(public_key)], capture_output=True, text=True, check=True
    ).stdout
    return shown.split()[1]


__all__ = ["INSTALL_HINT", "Command", "SshNode", "SshdMissing", "find_sshd", "fingerprint", "make_key"]
