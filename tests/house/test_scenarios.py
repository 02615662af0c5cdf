"""The executable specification is complete, skips nothing in silence, and its Then steps can fail."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from behave.model import Scenario, ScenarioOutline
from behave.parser import parse_file

ROOT = Path(__file__).resolve().parents[2]
FEATURES = ROOT / "features"
SCENARIOS = (
    "Add remote rbee-hive node to registry",
    "Add node with SSH connection failure",
    "Install rbee-hive on remote node",
    "List registered rbee-hive nodes",
    "Remove node from rbee-hive registry",
    "Inference fails when node not in registry",
    "Happy path - cold start inference on remote node",
    "Warm start - reuse existing idle worker",
    "Worker registry returns empty list",
    "Worker registry returns matching idle worker",
    "Worker registry returns matching busy worker",
    "Pool preflight health check succeeds",
    "Pool preflight detects version mismatch",
    "Pool preflight connection timeout with retry",
    "Model found in SQLite catalog",
    "Model not found - download with progress",
    "Model download fails with retry",
    "Model catalog registration after download",
    "GGUF model detection by file extension",
    "GGUF metadata extraction",
    "GGUF quantization formats supported",
    "GGUF model size calculation",
    "Worker preflight RAM check passes",
    "Worker preflight RAM check fails",
    "Worker preflight backend check passes",
    "Worker preflight backend check fails",
    "Worker startup sequence",
    "Worker ready callback",
    "Worker registration in in-memory registry",
    "Worker health check while loading",
    "Worker loading progress stream",
    "Worker health check when ready",
    "Worker loading timeout",
    "Inference request with SSE streaming",
    "Inference request when worker is busy",
    "EC1 - Connection timeout with retry and backoff",
    "EC2 - Model download failure with retry",
    "EC3 - Insufficient VRAM",
    "EC4 - Worker crash during inference",
    "EC5 - Client cancellation with Ctrl+C",
    "EC6 - Queue full with retry",
    "EC7 - Model loading timeout",
    "EC8 - Version mismatch",
    "EC9 - Invalid API key",
    "EC10 - Idle timeout and worker auto-shutdown",
    "Rbee-hive remains running as persistent HTTP daemon",
    "Rbee-hive monitors worker health",
    "Rbee-hive enforces idle timeout (worker dies, pool lives)",
    "Cascading shutdown when rbee-hive receives SIGTERM",
    "rbee-keeper exits after inference (CLI dies, daemons live)",
    "Ephemeral mode - rbee-keeper spawns rbee-hive",
    "Persistent mode - rbee-hive pre-started",
    "Error response structure validation",
    "CLI command - install to user paths",
    "CLI command - install to system paths",
    "Config file loading with XDG priority",
    "Remote binary path configuration",
    "CLI command - basic inference",
    "CLI command - list workers",
    "CLI command - check worker health",
    "CLI command - manually shutdown worker",
    "CLI command - view logs",
)
NOT_YET = {
    # With the installation of nodes.
    *(3, 57),
}
"""Numbers of the scenarios that are still to be written, counted from 1."""
TAGS = {"setup": (1, 2, 3, 4, 5, 6), "gguf": (19, 20, 21, 22), "lifecycle": range(46, 53)}
TAGS |= {"install": range(54, 58), "critical": (1, 6, 46, 48, 49, 50, 51, 52)}
CONDITIONS = {"needs-cuda", "needs-root", "slow"}
"""Tags of what cannot be shown everywhere or takes long; the run says so for each."""


def scenarios() -> list[Scenario | ScenarioOutline]:
    found: list[Scenario | ScenarioOutline] = []
    for file in sorted(FEATURES.rglob("*.feature")):
        feature = parse_file(str(file))
        assert feature is not None, file
        assert feature.name.startswith("Cross-Node Inference Request Flow"), file
        for item in feature.walk_scenarios(with_outlines=True):
            if isinstance(item, ScenarioOutline) or not isinstance(item.parent, ScenarioOutline):
                found.append(item)
    return found


def test_every_scenario_that_is_due_is_there_exactly_once() -> None:
    assert len(set(SCENARIOS)) == 62
    counted = Counter(scenario.name for scenario in scenarios())
    due = [name for number, name in enumerate(SCENARIOS, 1) if number not in NOT_YET]
    assert {name: counted[name] for name in due} == dict.fromkeys(due, 1)
    assert [name for name, count in counted.items() if count > 1] == []


def test_every_other_scenario_is_a_further_example_of_one_in_the_list() -> None:
    names = [scenario.name for scenario in scenarios() if scenario.name not in SCENARIOS]
    assert [name for name in names if not name.startswith(tuple(f"{known} - " for known in SCENARIOS))] == []


def test_scenarios_that_are_not_yet_due_are_not_written() -> None:
    """Whoever writes one takes its number out of the list, so that it cannot vanish again."""
    names = {scenario.name for scenario in scenarios()}
    assert [number for number in NOT_YET if SCENARIOS[number - 1] in names] == []


def test_scenarios_have_their_tags_and_none_is_skipped_in_silence() -> None:
    for scenario in scenarios():
        tags = set(map(str, scenario.effective_tags))
        assert tags <= {*TAGS, *CONDITIONS}, scenario.name
        if scenario.name in SCENARIOS:
            number = SCENARIOS.index(scenario.name) + 1
            wanted = {tag for tag, numbers in TAGS.items() if number in numbers}
            assert tags == wanted, scenario.name


def test_every_outline_has_an_example_that_runs_everywhere() -> None:
    for scenario in scenarios():
        if isinstance(scenario, ScenarioOutline):
            plain = [table for table in scenario.examples if not CONDITIONS & set(map(str, table.tags))]
            assert plain, scenario.name


def test_every_scenario_acts_and_then_observes() -> None:
    for scenario in scenarios():
        kinds = [step.step_type for step in scenario.steps]
        assert "when" in kinds, scenario.name
        assert kinds[-1] == "then", scenario.name


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for file in [*(FEATURES / "steps").glob("*.py"), *(FEATURES / "support").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield file, node


def is_then(function: ast.FunctionDef) -> bool:
    calls = [decorator.func for decorator in function.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(called, ast.Name) and called.id == "then" for called in calls)


def asserts(function: ast.FunctionDef, helpers: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers:
            return True
    return False


def test_every_then_step_contains_an_assertion() -> None:
    checks = {f.name for _, f in functions() if f.name.startswith("check_") and asserts(f, set())}
    steps = [(file, function) for file, function in functions() if is_then(function)]
    steps_that_assert = {f.name for _, f in steps if asserts(f, checks)}
    assert len(steps) > 50
    lacking = [
        f"{file.name}:{f.lineno} {f.name}" for file, f in steps if not asserts(f, checks | steps_that_assert)
    ]
    assert lacking == []


@pytest.mark.parametrize("attribute", ["exit_code", "stdout", "stderr", "status", "body"])
def test_nothing_writes_to_what_was_observed(attribute: str) -> None:
    for file, function in functions():
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else []
            written = [t.attr for t in targets if isinstance(t, ast.Attribute)]
            assert attribute not in written, f"{file.name}:{function.name}"
