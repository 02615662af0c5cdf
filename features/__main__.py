"""Runs the features side by side, one behave process per file: ``python -m features [--jobs N] [FILE …]``.

``--self-check`` replaces all programs by one that prints nothing and exits 0; then every scenario must fail.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from features.support.processes import MODULES  # noqa: E402
from features.support.results import RESULTS_VARIABLE, Outcome, read_outcomes  # noqa: E402
from features.support.sandbox import PROGRAMS_VARIABLE  # noqa: E402


@dataclass(frozen=True)
class FileRun:
    """What one behave process did with one feature file."""

    file: Path
    exit_code: int
    output: str
    outcomes: list[Outcome]
    seconds: float


Judge = Callable[[FileRun], list[str]]
"""Says what is wrong with a run, one line each."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m features", description=__doc__)
    parser.add_argument("--jobs", type=int, default=3, help="feature files at the same time (3)")
    parser.add_argument("--self-check", action="store_true", help="every scenario must fail")
    parser.add_argument("--slow", action="store_true", help="also what is tagged @slow")
    parser.add_argument("files", nargs="*", type=Path, help="feature files; all without them")
    options = parser.parse_args()
    # A run in the background is started with Ctrl+C ignored, and what a scenario runs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    files = sorted(options.files or (ROOT / "features").rglob("*.feature"), key=_length, reverse=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rbee-features-") as folder:
        environment = dict(os.environ)
        if options.self_check:
            environment[PROGRAMS_VARIABLE] = str(_make_empty_programs(Path(folder) / "programs"))
        behave = ["-D", f"slow={options.slow or options.self_check}".lower()]
        judged = judge_self_check if options.self_check else judge
        runs = _run_all(files, options.jobs, behave, environment, Path(folder), judged)
    bad = sum(len(judged(run)) for run in runs)
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    print(f"{len(outcomes)} scenarios in {time.monotonic() - began:.0f} s with {options.jobs} jobs")
    print(closing_line(outcomes))
    return 1 if bad or not outcomes else 0


def closing_line(outcomes: list[Outcome]) -> str:
    """``N passed, N failed, N skipped``."""
    counts = Counter(_kind(outcome) for outcome in outcomes)
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))


def _kind(outcome: Outcome) -> str:
    """What is neither passed nor skipped for a stated reason has failed: an undefined step, an error."""
    if not outcome.is_fine:
        return "failed"
    return "passed" if outcome.status == "passed" else "skipped"


def _run_all(
    files: list[Path],
    jobs: int,
    options: list[str],
    environment: dict[str, str],
    folder: Path,
    judged: Judge,
) -> list[FileRun]:
    runs = []
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(_run_file, file, options, environment, folder) for file in files]
        for done in as_completed(pending):
            run = done.result()
            runs.append(run)
            _show(run, judged(run))
    return runs


def _run_file(file: Path, options: list[str], environment: dict[str, str], folder: Path) -> FileRun:
    results = folder / f"{file.parent.name}-{file.stem}.jsonl"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "behave", "--no-summary", *options, str(file)],
        cwd=ROOT,
        env={**environment, RESULTS_VARIABLE: str(results)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return FileRun(file, done.returncode, done.stdout, read_outcomes(results), time.monotonic() - began)


def judge(run: FileRun) -> list[str]:
    """What is wrong with a run, one line each."""
    if not run.outcomes:
        return ["FAILED no scenario was run"]
    wrong = [f"FAILED {outcome.name}" for outcome in run.outcomes if not outcome.is_fine]
    if run.exit_code != 0 and not wrong:
        wrong = [f"FAILED behave ended with {run.exit_code}"]
    return wrong


def judge_self_check(run: FileRun) -> list[str]:
    """The same with programs that do nothing: what has passed shows nothing."""
    wrong = [f"PASSED with empty programs: {o.name}" for o in run.outcomes if o.status == "passed"]
    return wrong if run.outcomes else ["no scenario was run"]


def _show(run: FileRun, wrong: list[str]) -> None:
    passed = sum(outcome.status == "passed" for outcome in run.outcomes)
    print(f"{run.file.parent.name}/{run.file.name}: {passed}/{len(run.outcomes)} passed, {run.seconds:.0f} s")
    for outcome in run.outcomes:
        if outcome.status == "skipped":
            print(f"  skipped {outcome.name}: {outcome.reason}")
    for line in wrong:
        print(f"  {line}")
    if wrong:
        print(run.output)
    sys.stdout.flush()


def _make_empty_programs(folder: Path) -> Path:
    folder.mkdir()
    for name in (*MODULES, "rbee"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    return folder


def _length(file: Path) -> tuple[bool, int]:
    """Files that run playbooks take longest and begin first; then those with most scenarios."""
    text = file.read_text()
    return "setup install" in text, len(re.findall(r"^\s*Scenario", text, re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
