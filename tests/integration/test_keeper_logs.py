"""The logs of a node as the keeper shows them, through a real queen, a real hive and a worker process."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rbee.core.clock import utc_iso
from support.daemons import wait_until
from support.hives import SCRIPTED, ctranslate2_folder
from support.keeper import Outcome, RunningKeeper, run_keeper
from support.queens import QueenUnderTest, start_queen
from support.scripted import run_task

TIMING = "ready_poll_interval_s = 0.2\nqueen_drain_timeout_s = 1\nhive_shutdown_timeout_s = 6\n"


@pytest.fixture(scope="module")
def queen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueenUnderTest]:
    """A queen whose hive and one worker have logged something."""
    folder = tmp_path_factory.mktemp("logs")
    pool = f"[pool]\nworker_command = {json.dumps(f'{SCRIPTED} --tokens 2')}\n"
    running = start_queen(folder / "home", timing=TIMING, extra=pool)
    with running.daemon:
        model = ctranslate2_folder(folder / "model")
        answer = run_task(running.url, {"prompt": "x", "model": model})
        assert "done" in answer.terminal, answer.terminal
        yield running


def logs(queen: QueenUnderTest, *args: str) -> Outcome:
    home = queen.home.parent / "keeper"
    return run_keeper(home, "--queen-url", queen.url, "logs", "--node", "localhost", *args)


def shown(run: Outcome) -> list[dict[str, Any]]:
    assert run.code == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_lines_of_hive_and_worker_come_with_their_source(queen: QueenUnderTest) -> None:
    lines = shown(logs(queen, "--json"))
    (worker,) = {line["source"] for line in lines} - {"rbee-hive"}
    assert worker.startswith("worker-")
    alone = shown(logs(queen, "--json", "--id", worker))
    assert alone
    assert {line["source"] for line in alone} == {worker}
    text = logs(queen, "--worker", worker)
    assert text.stdout.splitlines()[: len(alone)] == [line["line"] for line in alone]


def test_since_takes_an_age_or_a_time_and_goes_by_the_lines_own_time(queen: QueenUnderTest) -> None:
    everything = shown(logs(queen, "--json", "--since", "2h"))
    assert {"rbee-hive"} < {line["source"] for line in everything}
    stamps = [json.loads(e["line"])["timestamp"] for e in everything if e["source"] == "rbee-hive"]
    middle = stamps[len(stamps) // 2]
    for later in shown(logs(queen, "--json", "--since", middle)):
        if later["source"] == "rbee-hive":
            assert json.loads(later["line"])["timestamp"] >= middle
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    none = logs(queen, "--since", tomorrow)
    assert (none.code, none.stdout, none.stderr) == (0, "", "")


def test_following_from_a_time_on_shows_what_comes_and_not_what_was(queen: QueenUnderTest) -> None:
    home = queen.home.parent / "follower"
    command = ("--queen-url", queen.url, "logs", "--node", "localhost", "--follow", "--since", "0s", "--json")
    began = utc_iso()
    with RunningKeeper(home, *command) as follower:

        def seen() -> bool:
            run_task(queen.url, {"prompt": "x", "model": "file:/no/such.gguf"})
            return "/no/such.gguf" in follower.stdout or '"POST"' in follower.stdout

        wait_until(seen, 20, "a new line")
        follower.signal(2)
        assert follower.outcome().code == 130
    stamps = [json.loads(json.loads(line)["line"])["timestamp"] for line in follower.stdout.splitlines()]
    assert stamps
    assert min(stamps) >= began
