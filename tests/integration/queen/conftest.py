"""One queen with shortened time constants for a module, and scripted peers on its local hive's port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.queens import QueenUnderTest, start_queen
from support.scripted import ScriptedHive


@pytest.fixture(scope="module")
def queen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path_factory.mktemp("queen"))
    with running.daemon:
        yield running


@pytest.fixture
def hive(queen: QueenUnderTest, tmp_path: Path) -> Iterator[Callable[..., ScriptedHive]]:
    """Starts a scripted hive where the queen expects this machine's."""
    started: list[ScriptedHive] = []

    def start(**script: Any) -> ScriptedHive:
        started.append(ScriptedHive(tmp_path, port=queen.hive_port, **script))
        return started[-1]

    yield start
    for peer in started:
        peer.__exit__()
