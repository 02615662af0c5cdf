"""A playbook in a process of its own: its events, its failure, and its end with whoever asked for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.daemons import wait_until

ROOT = Path(__file__).resolve().parents[2]
PLAY = """
- name: Try it
  hosts: all
  gather_facts: false
  tasks:
    - name: Wait long
      ansible.builtin.command: {argv: [sh, -c, "echo $$ > '%(folder)s/pid'; %(command)s"]}
"""


class Running:
    """The process, asked to run one playbook on this machine."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        playbook = folder / "play.yml"
        playbook.write_text(PLAY % {"folder": folder, "command": command})
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        request = {
            "playbook": str(playbook),
            "config": str(ROOT / "playbooks" / "ansible.cfg"),
            "inventory": {"all": {"hosts": {"here": here}}},
            "extravars": {},
            "arguments": [],
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rbee_keeper.adapters.ansible_process"],
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def command_pid(self) -> int:
        """The pid of the task's command, once it runs."""
        file = self.folder / "pid"
        return wait_until(lambda: int(file.read_text() or 0) if file.exists() else 0, 60, "the task")

    def events(self) -> list[dict[str, Any]]:
        """Everything it still has to say."""
        assert self.process.stdout is not None
        return [json.loads(line) for line in self.process.stdout]

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Any]:
    started: list[Running] = []

    def start(command: str) -> Running:
        started.append(Running(tmp_path, command))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_events_come_line_by_line_and_the_last_line_is_the_outcome(running: Any) -> None:
    *events, last = running("true").events()
    kinds = [event["event"] for event in events]
    assert kinds.index("runner_on_start") < kinds.index("runner_on_ok")
    assert (last["done"], last["exit_code"]) == ("successful", 0)
    assert last["stats"]["changed"] == {"here": 1}


def test_a_failed_task_is_told_with_what_it_said(running: Any) -> None:
    *events, last = running("echo no space >&2; exit 3").events()
    (failed,) = [event["data"] for event in events if event["event"] == "runner_on_failed"]
    assert (failed["host"], failed["task"], failed["res"]["stderr"]) == ("here", "Wait long", "no space")
    assert last["done"] == "failed"


@pytest.mark.parametrize("end", ["input closed", "SIGTERM"])
def test_the_playbook_ends_with_whoever_asked_for_it(running: Any, end: str) -> None:
    run = running("exec sleep 300")
    run.command_pid()
    family = psutil.Process(run.process.pid).children(recursive=True)
    assert len(family) > 2
    if end == "SIGTERM":
        run.process.send_signal(signal.SIGTERM)
    else:
        run.process.stdin.close()
    last = run.events()[-1]
    run.process.wait(30)
    assert last["done"] == "canceled"
    assert psutil.wait_procs(family, timeout=20)[1] == []


def test_nothing_is_left_on_disk(running: Any, tmp_path: Path) -> None:
    running("true").events()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("rb-")] == []
