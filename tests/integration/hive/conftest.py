"""Hives of their own for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.daemons import wait_until
from support.hives import HiveNode, ctranslate2_folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of a model that stand-in workers can load."""
    return ctranslate2_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def shared_hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiveNode]:
    """One hive with peaceful stand-in workers for the tests of a module that leave it as it was."""
    with HiveNode(tmp_path_factory.mktemp("shared") / "node", worker="--token-ms 10") as hive:
        yield hive


@pytest.fixture
def hive(shared_hive: HiveNode) -> Iterator[HiveNode]:
    """The shared hive; workers that a test spawned are ended after it."""
    yield shared_hive
    for worker in shared_hive.workers():
        shared_hive.call("DELETE", f"/v1/workers/{worker['id']}")
    wait_until(lambda: shared_hive.workers() == [], 20, "no workers left")


@pytest.fixture
def start_hive(tmp_path: Path) -> Iterator[Callable[..., HiveNode]]:
    """Starts hives; each is ended, and checked to have left nothing, at the end of the test."""
    with ExitStack() as stack:
        number = 0

        def start(**options: Any) -> HiveNode:
            nonlocal number
            number += 1
            return stack.enter_context(HiveNode(tmp_path / f"node{number}", **options))

        yield start
