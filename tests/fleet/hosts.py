"""Real machines for tests: network namespaces with their own file system, sshd and, mostly, systemd."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LAB = HERE / "lab.sh"
CACHE = Path(os.environ.get("RBEE_TEST_CACHE") or Path.home() / ".cache") / "rbee-fleet"
PROGRAMS = ("systemd-nspawn", "mmdebstrap", "ip", "ssh", "ssh-keygen")
SNAPSHOT = r"""
import grp, json, os, pwd, subprocess
SKIPPED = {"/proc", "/sys", "/dev", "/run", "/var/log/journal"}
# Of Python, of Ansible, and of services of the system that were started anew.
OTHERS = ("__pycache__", ".ansible", "systemd-private-")
files = {}
for folder, names, others in os.walk("/"):
    names[:] = [n for n in names if os.path.join(folder, n) not in SKIPPED and not n.startswith(OTHERS)]
    for name in names + others:
        path = os.path.join(folder, name)
        seen = os.lstat(path)
        files[path] = [seen.st_mode, seen.st_uid, seen.st_gid]
def lines(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
units = [one for one in lines("systemctl", "list-unit-files", "--no-legend") if "transient" not in one]
ours = [line for line in lines("ps", "-eww", "-o", "user=,args=") if "rbee" in line or "/opt/" in line]
print(json.dumps({
    "files": files,
    "units": sorted(" ".join(line.split()[:2]) for line in units),
    "processes": ours,
    "users": sorted(one.pw_name for one in pwd.getpwall()),
    "groups": sorted(one.gr_name for one in grp.getgrall()),
}))
"""


def missing_prerequisite() -> str | None:
    """Why this machine cannot make hosts, or None."""
    if os.geteuid() != 0:
        return "The fleet tests make machines of their own and need root: sudo make fleet-test"
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return (
            f"The fleet tests need {', '.join(lacking)}: apt-get install "
            "mmdebstrap systemd-container openssh-server openssh-client iproute2 zstd"
        )
    return None


@dataclass
class Lab:
    """Some hosts on a bridge of their own.

    Args:
        number: tells labs apart that run at the same time.
        folder: everything of the lab lies here.
        with_systemd: False gives hosts whose first process is a shell that keeps sshd running.
    """

    number: int
    folder: Path
    with_systemd: bool = True
    hosts: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LAB_ID": str(self.number),
            "LAB_DIR": str(self.folder),
            "LAB_LEVEL": "b" if self.with_systemd else "a",
            "LAB_BASE": str(CACHE / "base"),
            "LAB_LOWER": str(CACHE / "base"),
        }

    def lab(self, *args: str, check: bool = True) -> str:
        done = subprocess.run(
            [str(LAB), *args], env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        if check and done.returncode != 0:
            raise AssertionError(f"lab.sh {shlex.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def up(self, count: int) -> None:
        """Start hosts; what an earlier, killed run has left is removed first."""
        self.lab("build")
        self.lab("down", check=False)
        self.lab("up", str(count))
        self.hosts = [f"n{number}" for number in range(1, count + 1)]

    def down(self) -> None:
        self.lab("down", check=False)

    def address(self, host: str) -> str:
        return self.lab("ip", host).strip()

    def run(self, host: str, *argv: str, check: bool = True) -> str:
        """A command over SSH; its standard output."""
        return self.lab("ssh", host, shlex.join(argv), check=check)

    def add_login(self, host: str, account: str) -> None:
        """An account that the lab's key opens."""
        self.run(host, "useradd", "--create-home", "--shell", "/bin/bash", account)
        self.run(host, "cp", "-r", "/root/.ssh", f"/home/{account}/")
        self.run(host, "chown", "-R", f"{account}:{account}", f"/home/{account}/.ssh")

    def snapshot(self, host: str) -> dict[str, Any]:
        """Files, units, accounts and processes of a host."""
        found: dict[str, Any] = json.loads(self.run(host, "python3", "-c", SNAPSHOT))
        return found

    def connection(self, host: str) -> dict[str, str]:
        """Ansible's variables for the way to a host."""
        options = {"UserKnownHostsFile": self.folder / "known_hosts", "StrictHostKeyChecking": "yes"}
        options |= {"IdentitiesOnly": "yes", "KexAlgorithms": "curve25519-sha256", "ConnectTimeout": "5"}
        options |= {"ServerAliveInterval": "2", "ServerAliveCountMax": "3"}
        return {
            "ansible_host": self.address(host),
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "id"),
            "ansible_ssh_common_args": " ".join(f"-o {name}={value}" for name, value in options.items()),
            "ansible_control_path_dir": str(self.folder / "cm"),
            "ansible_control_path": "%(directory)s/%%h-%%r",
        }


@contextlib.contextmanager
def running_lab(number: int, count: int, *, with_systemd: bool = True) -> Iterator[Lab]:
    """Hosts that are there for the time of the block."""
    lab = Lab(number, Path(f"/tmp/rbee-lab-{number}"), with_systemd)  # noqa: S108 (sockets need a short path)
    try:
        lab.up(count)
        yield lab
    finally:
        lab.down()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a host has that it had not, and the other way round."""
    told = []
    for kind in ("files", "units", "processes", "users", "groups"):
        left, right = old[kind], new[kind]
        told += [f"{kind}: + {one}" for one in right if one not in left]
        told += [f"{kind}: - {one}" for one in left if one not in right]
        if kind == "files":
            told += [
                f"files: {one} {left[one]} {right[one]}"
                for one in right
                if left.get(one, right[one]) != right[one]
            ]
    return told
