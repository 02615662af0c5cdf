"""Locks between processes: one holder at a time, told to those who wait, gone with a killed holder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rbee.models.locks import exclusive, unless_held

HOLDER = """
import sys
from pathlib import Path
from rbee.models.locks import exclusive
with exclusive(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "key.lock"


def never() -> None:
    raise AssertionError("nobody holds it")


def hold_elsewhere(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_free_lock_is_taken_without_waiting_and_is_free_again(path: Path) -> None:
    with exclusive(path, never), unless_held(path) as is_free:
        assert not is_free
    with unless_held(path) as is_free:
        assert is_free


def test_a_lock_is_given_back_when_the_holder_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(path, never):
        _ = 1 / 0
    with unless_held(path) as is_free:
        assert is_free


def test_nobody_gets_a_lock_that_is_looked_at(path: Path) -> None:
    got, waits = threading.Event(), threading.Event()

    def wait() -> None:
        with exclusive(path, waits.set):
            got.set()

    waiter = threading.Thread(target=wait)
    with unless_held(path) as is_free:
        assert is_free
        waiter.start()
        assert waits.wait(20)
        assert not got.is_set()
    waiter.join(20)
    assert got.is_set()


def test_a_killed_holder_gives_way_to_the_one_that_waits(path: Path) -> None:
    holder = hold_elsewhere(path)
    try:
        waited = []

        def on_waiting() -> None:
            waited.append(holder.poll())
            if len(waited) == 2:
                holder.send_signal(signal.SIGKILL)

        with unless_held(path) as is_free:
            assert not is_free
        with exclusive(path, on_waiting):
            assert waited[:2] == [None, None]
    finally:
        holder.kill()
        holder.communicate()
