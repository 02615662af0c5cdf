"""The executable specification is complete, skips nothing in silence, and its Then steps can fail."""

from __future__ import annotations

import ast
import builtins
from collections import Counter
from collections.abc import Iterator
from functools import cache
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


def test_every_scenario_is_there_exactly_once() -> None:
    assert len(set(SCENARIOS)) == 62
    counted = Counter(scenario.name for scenario in scenarios())
    assert {name: counted[name] for name in SCENARIOS} == dict.fromkeys(SCENARIOS, 1)
    assert [name for name, count in counted.items() if count > 1] == []


def test_every_other_scenario_is_a_further_example_of_one_in_the_list() -> None:
    names = [scenario.name for scenario in scenarios() if scenario.name not in SCENARIOS]
    assert [name for name in names if not name.startswith(tuple(f"{known} - " for known in SCENARIOS))] == []


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


@cache
def functions() -> list[tuple[Path, ast.FunctionDef]]:
    files = [*(FEATURES / "steps").glob("*.py"), *(FEATURES / "support").glob("*.py")]
    nodes = ((file, node) for file in files for node in ast.walk(ast.parse(file.read_text())))
    return [(file, node) for file, node in nodes if isinstance(node, ast.FunctionDef)]


def is_then(function: ast.FunctionDef) -> bool:
    calls = [decorator.func for decorator in function.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(called, ast.Name) and called.id == "then" for called in calls)


def unconditional(body: list[ast.stmt], parameters: set[str]) -> Iterator[ast.stmt]:
    """The statements that are carried out whenever the function runs to its end: none that depend on a
    condition or on how much there is to look at. A step's own list of names is never empty.
    """
    for statement in body:
        yield statement
        if isinstance(statement, ast.With):
            yield from unconditional(statement.body, parameters)
        if isinstance(statement, ast.For) and names_in(statement.iter) <= parameters:
            yield from unconditional(statement.body, parameters)


def names_in(node: ast.AST) -> set[str]:
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def can_fail(statement: ast.stmt, parameters: set[str], checks: set[str]) -> bool:
    """Whether it compares something observed, or calls by its name a function that does."""
    if isinstance(statement, ast.Assert):
        # The words of the step alone, or a constant, are nothing that was observed.
        is_fixed = isinstance(statement.test, ast.Constant | ast.Tuple | ast.JoinedStr)
        seen = names_in(statement.test) - parameters - set(dir(builtins))
        return not is_fixed and bool(seen) and not is_always_true(statement.test)
    called = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(called, ast.Call) and isinstance(called.func, ast.Name) and called.func.id in checks


def is_always_true(test: ast.expr) -> bool:
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]
    return any(isinstance(part, ast.Constant) and bool(part.value) for part in parts)


def observes(function: ast.FunctionDef, checks: set[str]) -> bool:
    """Whether the function fails by itself when what it looks at is not as it should be."""
    parameters = {argument.arg for argument in function.args.args} - {"context"}
    if not is_then(function):
        # What a function of the support compares comes in as its parameters.
        parameters = set()
    return any(can_fail(each, parameters, checks) for each in unconditional(function.body, parameters))


@cache
def checking_functions() -> set[str]:
    """Names of functions whose call is an assertion: those that assert, or call one that does."""
    known = {"wait_until"}
    while True:
        found = known | {f.name for _, f in functions() if observes(f, known)}
        if found == known:
            return known
        known = found


def test_every_then_step_contains_an_assertion() -> None:
    checks = checking_functions()
    steps = [(file, function) for file, function in functions() if is_then(function)]
    assert len(steps) > 50
    assert [f"{file.name}:{f.lineno} {f.name}" for file, f in steps if not observes(f, checks)] == []


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "context.world.last.exit_code == code",
        "assert True",
        "assert code",
        "assert (context.world.last, 0)",
        "assert context.world.last or True",
        "note_outcome(context.world.last)",
        "for line in context.world.last.stdout: assert line",
        "if context.world.last: assert context.world.last.exit_code == code",
        "def check_it() -> None: assert context.world.last.exit_code == code",
        "try: assert context.world.last.exit_code == code\n    except AssertionError: pass",
    ],
)
def test_a_then_step_that_asserts_nothing_is_found(body: str) -> None:
    step = ast.parse(f"@then('x')\ndef step(context, code):\n    {body}").body[0]
    assert isinstance(step, ast.FunctionDef)
    assert is_then(step)
    assert not observes(step, checking_functions())


@pytest.mark.parametrize(
    "body",
    [
        "assert context.world.last.exit_code == code",
        "check_fields(context.world.last.json(), {})",
        "with context.world.last as last: assert last.exit_code == code",
        "for name in code: assert context.world.workers[name].pid",
    ],
)
def test_a_then_step_that_observes_is_let_through(body: str) -> None:
    step = ast.parse(f"@then('x')\ndef step(context, code):\n    {body}").body[0]
    assert isinstance(step, ast.FunctionDef)
    assert observes(step, checking_functions())


@pytest.mark.parametrize("attribute", ["exit_code", "stdout", "stderr", "status", "body"])
def test_nothing_writes_to_what_was_observed(attribute: str) -> None:
    for file, function in functions():
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else []
            written = [t.attr for t in targets if isinstance(t, ast.Attribute)]
            assert attribute not in written, f"{file.name}:{function.name}"
