"""Steps on the queen and hives as processes, and on the traffic they logged."""

from __future__ import annotations

import shlex
from typing import Any

from behave import given, then, when
from features.support import observing


@given("a queen")
def a_queen(context: Any) -> None:
    context.world.fleet.start_queen()


@given("the queen was started with MOCK_SSH")
def queen_with_mock(context: Any) -> None:
    restart_queen(context, MOCK_SSH="1")


@given("the SSH connect timeout is {seconds:d} second")
def ssh_timeout(context: Any, seconds: int) -> None:
    context.world.fleet.blep.configure("timing", ssh_connect_timeout_s=seconds)
    restart_queen(context)


def restart_queen(context: Any, **extra: str | None) -> None:
    """End the scenario's queen and start it again, so that it reads its configuration anew."""
    fleet = context.world.fleet
    fleet.queen.command.end()
    fleet.daemons.remove(fleet.queen)
    fleet.start_queen(**extra)


@when('blep runs "{line}"')
def blep_runs(context: Any, line: str) -> None:
    context.world.finished(context.world.fleet.keeper(*shlex.split(line)))


@then('the queen has answered "{method} {path}" with {status:d} exactly once')
def queen_answered_once(context: Any, method: str, path: str, status: int) -> None:
    seen = observing.requests_seen(context.world.fleet.queen_log)
    matching = [entry for entry in seen if entry == (method, path, status)]
    assert len(matching) == 1, seen


@then('the queen has seen no "{method} {path}"')
def queen_saw_none(context: Any, method: str, path: str) -> None:
    seen = observing.requests_seen(context.world.fleet.queen_log)
    assert not [entry for entry in seen if entry[:2] == (method, path)], seen


@then("no hive runs anywhere")
def no_hive(context: Any) -> None:
    fleet = context.world.fleet
    states = [fleet.blep.state, *(node.sandbox.state for node in fleet.nodes.values())]
    running = [pid for state in states for pid in observing.pids_of(state, "rbee-hive")]
    assert running == [], running
