"""The start of a serving process: what it patches, and what it leaves alone."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from rbee.web.server import _no_entry_points

PATCHES = """
import importlib.metadata

def asked(**group):
    raise SystemExit(f"all installed packages were searched for {group}")

importlib.metadata.entry_points = asked
from rbee.web.server import DaemonWorker
worker = object.__new__(DaemonWorker)
worker.sockets = []
worker.patch()
assert importlib.metadata.entry_points is asked
import socket, threading
assert socket.socket.__module__.startswith("gevent")
assert threading.get_ident.__module__.startswith("gevent")
"""


def test_patching_searches_no_packages() -> None:
    assert subprocess.run([sys.executable, "-c", PATCHES], check=False).returncode == 0


def test_a_search_for_packages_is_possible_again_whatever_happens() -> None:
    real = importlib.metadata.entry_points

    def patch() -> None:
        with _no_entry_points():
            assert not importlib.metadata.entry_points(group="console_scripts")
            raise KeyError

    with pytest.raises(KeyError):
        patch()
    assert importlib.metadata.entry_points is real
