"""Nodes with a systemd unit: systemd starts the queen's hive and ends it; the operator's is left alone.

``systemctl`` is a stand-in with the unit's state in files, over a real sshd and with a real hive.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from support.daemons import wait_until
from support.nodes import HOST, add, fields, has_ended, models_of, node_environment
from support.processes import with_state_below
from support.queens import QueenUnderTest, start_queen
from support.scripted import run_task
from support.sshd import SshNode, make_key

# The state of one unit, known to the manager of one scope. Changing a system unit takes the mark that the
# stand-in of sudo sets.
SYSTEMCTL = """#!/bin/sh
cd "$UNIT_FOLDER"
scope=$1; shift
[ "$scope" = "$(cat scope)" ] || exit 1
case "$1" in cat|show) ;; *)
  echo "$*" >> changes
  [ "$scope" = --user ] || [ -n "$STANDIN_ROOT" ] || { echo "Access denied" >&2; exit 4; } ;;
esac
alive() { case "$(cat "/proc/$(cat pid)/stat" 2>/dev/null)" in ''|*') Z '*) return 1;; esac; }
case "$1" in
  cat) ;;
  set-environment) echo "${2#RBEE_HIVE_OPTIONS=}" > options ;;
  unset-environment) rm -f options ;;
  start)
    alive && exit 0
    echo active > state
    setsid rbee-hive daemon $(cat options 2>/dev/null) </dev/null >journal 2>&1 &
    echo $! > pid ;;
  stop) echo inactive > state; kill -TERM "$(cat pid)" ;;
  kill) kill -s "$3" "$(cat pid)" ;;
  show)
    alive || { [ "$(cat state)" = active ] && echo failed > state; echo 0 > pid; }
    case "$3" in MainPID) cat pid ;; ActiveState) cat state ;; esac ;;
esac
"""
STAND_INS = {
    "systemctl": SYSTEMCTL,
    "sudo": '#!/bin/sh\n[ "$1" = -n ] && shift\nSTANDIN_ROOT=yes exec "$@"\n',
    "journalctl": '#!/bin/sh\ntail -n 5 "$UNIT_FOLDER/journal"\n',
    # The login is an ordinary user, whoever runs the tests.
    "id": '#!/bin/sh\n[ "$1" = -u ] && echo 1000\n',
}


@dataclass(frozen=True)
class Unit:
    """The unit ``rbee-hive.service`` of one node."""

    folder: Path
    node: SshNode
    environment: dict[str, str]

    @property
    def changes(self) -> list[str]:
        """What its manager was told to do, by the first word."""
        file = self.folder / "changes"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    def start_by_operator(self) -> None:
        variables = {**os.environ, **self.environment, "STANDIN_ROOT": "yes"}
        scope = (self.folder / "scope").read_text().strip()
        subprocess.run(
            [self.folder / "systemctl", scope, "start", "rbee-hive.service"], env=variables, check=True
        )
        (self.folder / "changes").unlink()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys") / "id_ed25519")


@pytest.fixture(params=["--user", "--system"])
def unit(request: pytest.FixtureRequest, tmp_path: Path, key: Path) -> Iterator[Unit]:
    folder = tmp_path / "unit"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name, text in (("scope", request.param), ("state", "inactive"), ("pid", "0"), ("journal", "")):
        (folder / name).write_text(text)
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {**node_environment(tmp_path), "UNIT_FOLDER": str(folder), "PATH": path}
    with SshNode(tmp_path / "node", [key], environment=environment, host=HOST) as node:
        yield Unit(folder, node, environment)
    left = with_state_below(tmp_path)
    for process in left:
        process.kill()
    assert left == []


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path / "queen")
    with running.daemon:
        yield running


def health(port: int) -> dict[str, object]:
    answer: dict[str, object] = requests.get(f"http://{HOST}:{port}/v1/health", timeout=5).json()
    return answer


def test_the_units_hive_is_the_queens_and_ended_through_systemd(
    unit: Unit, queen: QueenUnderTest, key: Path
) -> None:
    body = fields(unit.node, key, "n")
    add(queen, body)
    assert models_of(queen, "n").json() == {"models": []}
    told = health(body["hive_port"])
    assert (told["owner"], told["pid"]) == (queen.identity, unit.pid)
    # Started again by its operator later, it must not find this queen's options.
    assert not (unit.folder / "options").exists()
    pid = unit.pid
    assert queen.daemon.stop() == 0
    assert has_ended(pid)
    assert unit.changes == ["set-environment", "start", "unset-environment", "stop"]


def test_a_unit_that_its_operator_has_started_is_used_and_left_running(
    unit: Unit, queen: QueenUnderTest, key: Path
) -> None:
    body = fields(unit.node, key, "n")
    (Path(unit.environment["RBEE_CONFIG"])).write_text(
        f"[pool]\nlisten_addr = '{HOST}:{body['hive_port']}'\n"
    )
    unit.start_by_operator()
    add(queen, body)
    assert models_of(queen, "n").json() == {"models": []}
    assert health(body["hive_port"])["owner"] == "operator"
    assert queen.daemon.stop() == 0
    assert unit.changes == []
    assert not has_ended(unit.pid)
    os.kill(unit.pid, 15)
    wait_until(lambda: has_ended(unit.pid), 10, "the operator ends it")


@pytest.mark.parametrize("unit", ["--user"], indirect=True)
def test_a_unit_whose_hive_ends_at_once_is_told_in_its_own_words(
    unit: Unit, queen: QueenUnderTest, key: Path
) -> None:
    Path(unit.environment["RBEE_CONFIG"]).write_text("[pool]\nworker_port_min = 1\n")
    add(queen, fields(unit.node, key, "n"))
    answer = run_task(queen.url, {"prompt": "hi", "node": "n"})
    assert answer.error["code"] == "HIVE_START_FAILED"
    assert "pool.worker_port_min" in answer.error["details"]["reason"]


@pytest.mark.parametrize("unit", ["--system"], indirect=True)
def test_a_system_unit_that_the_login_may_not_start_is_told(
    unit: Unit, queen: QueenUnderTest, key: Path
) -> None:
    (unit.folder / "sudo").write_text('#!/bin/sh\necho "sudo: a password is required" >&2\nexit 1\n')
    add(queen, fields(unit.node, key, "n"))
    answer = run_task(queen.url, {"prompt": "hi", "node": "n"})
    assert answer.error["code"] == "HIVE_START_FAILED"
    assert answer.error["details"]["reason"] == "sudo: a password is required"
