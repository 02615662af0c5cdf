"""Which hive a queen takes for the one it has started."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from rbee.core.client import TransportFailure
from rbee.core.errors import HiveStartFailed
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet, silently
from rbee.queen.ports import HiveHealth, HiveProcess
from rbee.queen.registry import Nodes, builtin_node
from rbee.testing.fake_nodes import FakeNodes

OURS = HiveHealth("alive", "1", "this-queen", 10)
THEIRS = HiveHealth("alive", "1", "operator", 20)
THEIRS_ENDING = HiveHealth("stopping", "1", "operator", 20)
REFUSED = TransportFailure("refused", "Connection refused")


@dataclass
class Port:
    """What answers on the port of a node, one answer after the other, and whether our process still runs."""

    answers: Iterator[HiveHealth | TransportFailure]
    failures: Iterator[str | None]
    renewed: list[str] = field(default_factory=list)

    def hive(self, _node: Any) -> Any:
        return SimpleNamespace(health=self._health, host="127.0.0.1", port=1)

    def _health(self, _timeout_s: float) -> HiveHealth:
        answer = next(self.answers)
        if isinstance(answer, TransportFailure):
            raise answer
        return answer

    def start(self, _node: Any, port: int) -> HiveProcess:
        return HiveProcess(port, 10)

    def pause(self, _node: Any, _timeout_s: float) -> None:
        """Time does not matter here."""

    def failure(self, _node: Any) -> str | None:
        return next(self.failures)


def reach(answers: list[HiveHealth | TransportFailure], failures: list[str | None]) -> Fleet:
    # What has ended stays ended.
    port = Port(iter(answers), itertools.chain(failures, itertools.repeat(failures[-1])))
    timing = Timing(hive_start_poll_ms=1)
    fleet = Fleet(
        Nodes(FakeNodes, builtin_node(1)),
        port,  # type: ignore[arg-type]
        lambda _node: port,  # type: ignore[arg-type, return-value]
        "this-queen",
        "1",
        timing,
    )
    fleet.reach(builtin_node(1), silently)
    return fleet


def test_a_hive_of_somebody_else_that_answers_meanwhile_is_not_taken_for_ours() -> None:
    fleet = reach([REFUSED, THEIRS, REFUSED, OURS], [None, None])
    assert "localhost" in fleet.owned


def test_a_hive_that_was_quicker_to_take_the_port_is_used_and_not_owned() -> None:
    fleet = reach([REFUSED, THEIRS], ["it exited with status 1: cannot listen"])
    assert "localhost" not in fleet.owned


def test_a_hive_that_is_ending_is_neither_used_nor_taken_for_the_new_one() -> None:
    fleet = reach([THEIRS_ENDING, THEIRS_ENDING, REFUSED, THEIRS_ENDING, OURS], [None])
    assert "localhost" in fleet.owned


def test_a_hive_that_ends_while_another_one_is_ending_is_told() -> None:
    with pytest.raises(HiveStartFailed, match="cannot listen"):
        reach([REFUSED, THEIRS_ENDING], ["it exited with status 1: cannot listen"])
