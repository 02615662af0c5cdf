"""The machines of a scenario: a sandbox each, the hive and workers on it, and for nodes a real sshd."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from features.support import processes
from features.support.commands import RunningCommand
from features.support.models import EMBEDDED, embedded_file
from features.support.observing import call
from features.support.packages import installer_variables
from features.support.ports import is_free
from features.support.recorder import Recorder
from features.support.sandbox import Sandbox, merged, program, stand_in
from features.support.workers import START_S, Json, Worker

from support.sshd import SshNode

SLACK_S = 2.0
"""How much later than due a timer may act on a machine that is busy with other things."""


class DaemonProcess:
    """A long-running program started by the scenario itself, as an operator would.

    Args:
        name: the program, as it names itself in the line that announces its URL.
    """

    def __init__(self, name: str, argv: list[str], sandbox: Sandbox, extra: Mapping[str, str | None]) -> None:
        self.name = name
        self.command = RunningCommand(argv, merged(sandbox.environment, extra), sandbox.folder)
        self.url = self.command.wait_for(self._announced, START_S, f"{name} listening")

    def _announced(self) -> str | None:
        match = re.search(rf"{self.name} listening on (http://\S+)", self.command.stdout)
        return match.group(1) if match else None

    @property
    def pid(self) -> int:
        return self.command.pid


class Machine:
    """A machine that can run a hive.

    Args:
        host: the loopback address that stands for it.
        worker_port: the first of ``WORKER_PORTS`` free ports.
    """

    WORKER_PORTS = 8

    def __init__(self, name: str, sandbox: Sandbox, host: str, hive_port: int, worker_port: int) -> None:
        self.name, self.sandbox, self.host, self.hive_port = name, sandbox, host, hive_port
        self.hive_host = host
        """Where the hive itself listens; another address when a recorder has taken the machine's own."""
        last = worker_port + self.WORKER_PORTS - 1
        sandbox.configure("pool", name=name, listen_addr=f"{host}:{hive_port}", worker_host=host)
        sandbox.configure("pool", worker_port_min=worker_port, worker_port_max=last)
        self.model = EMBEDDED
        self.hive: DaemonProcess | None = None
        self.recorder: Recorder | None = None
        self.ssh_port = 0

    @property
    def hive_url(self) -> str:
        return f"http://{self.hive_host}:{self.hive_port}"

    @property
    def hive_log(self) -> Path:
        return self.sandbox.log_file("rbee-hive")

    @property
    def hive_processes(self) -> list[psutil.Process]:
        """Hives that run on the machine, whoever started them."""
        return processes.daemons(self.sandbox.state, "rbee-hive")

    @property
    def model_file(self) -> Path:
        return embedded_file(self.sandbox)

    @property
    def converted_folder(self) -> Path:
        """The embedded model as its workers load it."""
        kind = self.sandbox.settings["worker"]["compute_type"]
        (folder,) = (self.sandbox.state / "models" / "ct2").glob(f"*-{kind}")
        return folder

    @property
    def listening(self) -> list[int]:
        """The ports of its hive and workers that somebody listens on."""
        pool = self.sandbox.settings["pool"]
        own = [self.hive_port, *range(pool["worker_port_min"], pool["worker_port_max"] + 1)]
        return [port for port in own if not is_free(self.host, port)]

    def record_hive(self) -> Recorder:
        """Move the hive to an address of its own and put a recorder in its place."""
        self.hive_host = self.host.replace("127.0.0.", "127.0.1.")
        self.sandbox.configure("pool", listen_addr=f"{self.hive_host}:{self.hive_port}")
        self.recorder = Recorder((self.hive_host, self.hive_port), self.host, self.hive_port)
        return self.recorder

    @property
    def worker_processes(self) -> list[psutil.Process]:
        return processes.daemons(self.sandbox.state, "llm-worker-rbee")

    def start_hive(self, extra: Mapping[str, str]) -> DaemonProcess:
        """Start a hive by hand, as its operator would."""
        self.hive = DaemonProcess("rbee-hive", program("rbee-hive"), self.sandbox, extra)
        return self.hive

    def hive_health(self) -> Json:
        answer = call("GET", f"{self.hive_url}/v1/health")
        assert answer.status == 200, answer.body
        found: Json = answer.json()
        return found

    def choose_worker_program(self) -> None:
        """Have the hive start workers through a script that takes the stand-in once it is told to."""
        script = self.sandbox.folder / "worker-program"
        stuck = shlex.join([*stand_in("scripted_worker"), "--layers", "32", "--stuck-at", "28"])
        real = shlex.join(program("llm-worker-rbee"))
        script.write_text(f'#!/bin/sh\n[ -e "$0.stuck" ] && exec {stuck} "$@"\nexec {real} "$@"\n')
        script.chmod(0o755)
        self.sandbox.configure("pool", worker_command=str(script))

    def next_worker_is_stuck(self) -> None:
        """From now on workers of this machine are stand-ins that never finish loading."""
        (self.sandbox.folder / "worker-program.stuck").touch()

    def listed(self) -> list[Json]:
        """The workers the hive lists."""
        answer = call("GET", f"{self.hive_url}/v1/workers/list")
        assert answer.status == 200, answer.body
        found: list[Json] = answer.json()["workers"]
        return found

    def spawn(self, model_ref: str) -> Worker:
        """Have the hive start a worker; it is still loading when this returns."""
        answer = call("POST", f"{self.hive_url}/v1/workers/spawn", {"model_ref": model_ref})
        assert answer.status == 200, answer.body
        return Worker(self, answer.json())

    def adopt(self) -> Worker:
        """The only worker of the machine, once there is one, whoever had it spawned; its key as a queen asks
        for it."""
        deadline = time.monotonic() + START_S
        while not (listed := self.listed()):
            assert time.monotonic() < deadline, f"{self.name} has no worker"
            time.sleep(0.01)
        (record,) = listed
        answer = call("POST", f"{self.hive_url}/v1/workers/spawn", {"worker_id": record["id"]})
        assert answer.status == 200, answer.body
        worker = Worker(self, answer.json())
        worker.pid = record["pid"] or 0
        return worker


class Node(Machine):
    """A remote machine behind a real sshd."""

    def __init__(
        self,
        name: str,
        sandbox: Sandbox,
        host: str,
        hive_port: int,
        worker_port: int,
        ssh_port: int,
        key: Path,
    ) -> None:
        super().__init__(name, sandbox, host, hive_port, worker_port)
        folder = sandbox.folder / "sshd"
        self.ssh = SshNode(folder, [key], environment=self._environment(), host=host, port=ssh_port)
        self.ssh_port = ssh_port
        self.install_path = str(sandbox.folder / "rbee")
        """Nothing is installed there: the hive is then taken from the node's PATH."""
        self.logins_at_registration = 0

    def _environment(self) -> dict[str, str]:
        """The node's, without the units that the machine running the suite may have."""
        programs = self.sandbox.folder / "bin"
        programs.mkdir()
        systemctl = programs / "systemctl"
        systemctl.write_text("#!/bin/sh\nexit 1\n")
        systemctl.chmod(0o755)
        environment = self.sandbox.environment
        return {**environment, **installer_variables(), "PATH": f"{programs}:{environment['PATH']}"}

    @property
    def user(self) -> str:
        return self.ssh.user

    @property
    def remote_home(self) -> str:
        """What ``~`` means for its login."""
        return "/root" if self.user == "root" else f"/home/{self.user}"
