"""One person changes the fleet at a time, and a dead holder is in nobody's way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbee_keeper.provisioning.fleet_lock import LOCK_FILE, FleetLocked, fleet_lock


def told_by(run_dir: Path) -> list[str]:
    told: list[str] = []
    with fleet_lock(run_dir, "install of n1", told.append):
        pass
    return told


def test_a_second_person_is_refused_and_told_who_since_when_and_why(tmp_path: Path) -> None:
    with fleet_lock(tmp_path, "upgrade of n1, n2", print), pytest.raises(FleetLocked) as refused:  # noqa: SIM117
        with fleet_lock(tmp_path, "install of n3", print):
            raise AssertionError("two at once")
    assert "@" in refused.value.message
    assert refused.value.details[0] == "What: upgrade of n1, n2"
    assert refused.value.details[1].startswith("Since: 20")
    assert refused.value.details[2] == f"Process: {os.getpid()}"


def test_a_refused_person_leaves_the_note_of_the_holder(tmp_path: Path) -> None:
    with fleet_lock(tmp_path, "upgrade of n1", print):
        with pytest.raises(FleetLocked), fleet_lock(tmp_path, "install of n3", print):
            pass
        assert json.loads((tmp_path / LOCK_FILE).read_text())["why"] == "upgrade of n1"


def test_a_lock_that_was_released_is_taken_in_silence(tmp_path: Path) -> None:
    assert told_by(tmp_path) == []
    assert told_by(tmp_path) == []


def test_a_failure_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), fleet_lock(tmp_path, "upgrade of n1", print):
        raise RuntimeError
    assert told_by(tmp_path) == []


def test_the_lock_of_a_dead_process_is_told_and_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from rbee_keeper.provisioning.fleet_lock import fleet_lock\n"
        "with fleet_lock(pathlib.Path(sys.argv[1]), 'upgrade of n1', print):\n"
        "    os._exit(1)\n"
    )
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", script, tmp_path], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    (line,) = told_by(tmp_path)
    assert line.startswith("Taking over the fleet lock of ")
    assert "upgrade of n1" in line
    assert told_by(tmp_path) == []


def test_a_child_that_inherits_the_lock_keeps_it_after_its_parent(tmp_path: Path) -> None:
    with fleet_lock(tmp_path, "upgrade of n1", print) as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[lock])
    try:
        with pytest.raises(FleetLocked), fleet_lock(tmp_path, "install of n3", print):
            pass
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)
    assert told_by(tmp_path) == []
