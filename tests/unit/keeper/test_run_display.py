"""The events of a playbook run as the lines of the specification, and the reason of a failure."""

import io
from typing import Any

import pytest

from rbee_keeper.provisioning.display import RunDisplay, reason_of
from rbee_keeper.provisioning.operations import INSTALL, OUTCOME_TASK, UNINSTALL, UPGRADE, Operation
from rbee_keeper.terminal import Terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(kind: str, host: str, task: str, **res: Any) -> dict[str, Any]:
    return {"event": kind, "stdout": "", "data": {"host": host, "task": f"rbee_base : {task}", "res": res}}


def shown(operation: Operation, *events: dict[str, Any], **options: bool) -> tuple[list[str], RunDisplay]:
    out = io.StringIO()
    display = RunDisplay(Terminal(out, io.StringIO()), operation, **options)
    for one in events:
        display.take(one)
    display.finish()
    return out.getvalue().splitlines(), display


def test_an_installation_from_packages_shows_the_lines_of_the_specification() -> None:
    lines, display = shown(
        INSTALL,
        event("runner_on_start", "n1", "Check the disk"),
        event("runner_on_start", "n1", "Copy the packages"),
        event("runner_on_ok", "n1", "Copy the packages", changed=True),
        event("runner_on_start", "n1", "Build the release"),
        event("runner_on_ok", "n1", OUTCOME_TASK),
    )
    assert lines == [
        "[queen-rbee] 📦 Copying packages to n1",
        "[queen-rbee] 🔨 Building rbee-hive and llm-worker-rbee",
        "[queen-rbee] ✅ Installation complete on n1!",
    ]
    assert display.completed == ["n1"]


@pytest.mark.parametrize(
    ("operation", "task", "line"),
    [
        (INSTALL, "Clone the repository", "[queen-rbee] 📦 Cloning repository on n1"),
        (UNINSTALL, "Remove the hive", "[queen-rbee] 🗑 Removing rbee from n1"),
    ],
)
def test_the_first_line_tells_what_is_done(operation: Operation, task: str, line: str) -> None:
    assert shown(operation, event("runner_on_start", "n1", task))[0] == [line]


@pytest.mark.parametrize(
    ("operation", "noun"), [(INSTALL, "Installation"), (UPGRADE, "Upgrade"), (UNINSTALL, "Uninstall")]
)
def test_a_completed_node_is_named(operation: Operation, noun: str) -> None:
    lines, _ = shown(operation, event("runner_on_ok", "n1", OUTCOME_TASK))
    assert lines == [f"[queen-rbee] ✅ {noun} complete on n1!"]


def test_check_mode_claims_no_completion() -> None:
    assert shown(INSTALL, event("runner_on_ok", "n1", OUTCOME_TASK), is_check=True)[0] == []


def test_the_first_failure_of_a_node_is_its_reason() -> None:
    _, display = shown(
        UPGRADE,
        event("runner_item_on_failed", "n1", "Check the version", stderr="no such file"),
        event("runner_on_failed", "n1", "Check the version", msg="One or more items failed"),
        event("runner_on_failed", "n1", "Stop the roll-out", msg="n1 is back on 0.1.0"),
    )
    failure = display.failures["n1"]
    assert (failure.task, failure.reason) == ("Check the version", "no such file")


def test_a_failure_that_is_ignored_is_none() -> None:
    ignored = event("runner_on_failed", "n1", "Look", msg="no")
    ignored["data"]["ignore_errors"] = True
    assert shown(UPGRADE, ignored)[1].failures == {}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"stderr": "disk full\n", "msg": "non-zero return code"}, "disk full"),
        ({"stderr": "", "module_stderr": "Traceback", "msg": "MODULE FAILURE"}, "Traceback"),
        ({"msg": "Timeout", "stdout": "x"}, "Timeout"),
        ({"stdout": "all that was said"}, "all that was said"),
        (
            {"censored": "the output has been hidden"},
            "the output is hidden because it may hold the fleet key",
        ),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_reason_is_the_first_output_that_says_something(result: Any, reason: str) -> None:
    assert reason_of(result) == reason


def test_a_terminal_shows_what_each_node_is_doing() -> None:
    screen = Screen()
    display = RunDisplay(Terminal(io.StringIO(), screen), INSTALL)
    display.take(event("runner_on_start", "n1", "Make the environment"))
    display.take(event("runner_on_start", "n2", "Load the engine"))
    display.finish()
    assert "n1: Make the environment (0 s) · n2: Load the engine (0 s)" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_a_pipe_gets_no_live_view() -> None:
    errors = io.StringIO()
    display = RunDisplay(Terminal(io.StringIO(), errors), INSTALL)
    display.take(event("runner_on_start", "n1", "Make the environment"))
    assert errors.getvalue() == ""
