"""The runner of the scenarios calls nothing passed that was not shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from features.__main__ import FileRun, closing_line, judge, judge_self_check
from features.support.results import Outcome

SHOWN = Outcome("a scenario that was shown", "passed", 1.0)
LACKING = Outcome("a scenario for machines with CUDA", "skipped", 0.0, "this machine has no CUDA device")
NOT_SHOWN = [
    Outcome("a scenario with a step nobody wrote", "undefined", 0.0),
    Outcome("a scenario that was skipped in silence", "skipped", 0.0),
    Outcome("a scenario that was never begun", "untested", 0.0),
    Outcome("a scenario that left a process", "left something", 1.0, "process 1: queen-rbee"),
    Outcome("a scenario that failed", "failed", 1.0),
    Outcome("a scenario whose hook failed", "hook_error", 1.0),
]


def run_of(*outcomes: Outcome, exit_code: int = 0) -> FileRun:
    return FileRun(Path("a.feature"), exit_code, "", list(outcomes), 1.0)


@pytest.mark.parametrize("outcome", NOT_SHOWN, ids=lambda outcome: outcome.status)
def test_what_was_not_shown_has_failed(outcome: Outcome) -> None:
    assert judge(run_of(SHOWN, outcome)) == [f"FAILED {outcome.name}"]
    assert closing_line([SHOWN, LACKING, outcome]) == "1 passed, 1 failed, 1 skipped"


def test_a_stated_lack_is_no_failure() -> None:
    assert judge(run_of(SHOWN, LACKING)) == []
    assert closing_line([SHOWN, LACKING]) == "1 passed, 0 failed, 1 skipped"


def test_a_run_that_ended_badly_or_showed_nothing_has_failed() -> None:
    assert judge(run_of(SHOWN, exit_code=1)) == ["FAILED behave ended with 1"]
    assert judge(run_of()) == ["FAILED no scenario was run"]


def test_with_programs_that_do_nothing_a_pass_is_the_failure() -> None:
    assert judge_self_check(run_of(*NOT_SHOWN, LACKING)) == []
    assert judge_self_check(run_of(SHOWN)) == [f"PASSED with empty programs: {SHOWN.name}"]
    assert judge_self_check(run_of()) == ["no scenario was run"]
