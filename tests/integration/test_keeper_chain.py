"""The whole way, for real: keeper, queen, hive, worker and the embedded model."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from support.daemons import wait_until
from support.keeper import Outcome, RunningKeeper, processes_of, run_keeper
from support.processes import arguments
from support.scripted import free_port

pytestmark = pytest.mark.model

PROMPT = ("infer", "--prompt", "Name three colours.", "--max-tokens", "8", "--temperature", "0")
LONG = ("infer", "--prompt", "Write a long story about a bee.", "--max-tokens", "1000", "--temperature", "0")


@dataclass(frozen=True)
class Machine:
    """A machine on which the model has been used once: it is converted, and nothing runs."""

    home: Path
    model: str
    cold: Outcome

    def infer(self, *args: str) -> Outcome:
        return run_keeper(self.home, *args, "--model", self.model, timeout_s=240)

    def start(self, *args: str) -> RunningKeeper:
        return RunningKeeper(self.home, *args, "--model", self.model)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, embedded_gguf: Path) -> Machine:
    home = tmp_path_factory.mktemp("machine")
    config = home / ".config" / "rbee" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f'[queen]\nurl = "http://127.0.0.1:{free_port()}"\nlocal_hive_port = {free_port()}\n'
        '[worker]\ncompute_type = "int8"\n'
    )
    model = f"file:{embedded_gguf}"
    return Machine(home, model, run_keeper(home, *PROMPT, "--model", model, timeout_s=240))


@pytest.fixture(autouse=True)
def nothing_stays(machine: Machine) -> Iterator[None]:
    assert processes_of(machine.home) == []
    yield
    left = processes_of(machine.home)
    for process in left:
        process.kill()
    assert left == []


def test_the_first_answer_on_a_machine_tells_every_stage_and_leaves_nothing(machine: Machine) -> None:
    run = machine.cold
    assert run.code == 0, run.stderr
    assert len(run.stdout.split()) > 2
    assert run.stdout.endswith("\n")
    assert "Converting model... [████████████████████] 100%" in run.stderr
    assert "Loading model to VRAM... [████████████████████] 100%" in run.stderr
    lines = run.stderr.splitlines()
    assert lines.index("Model ready!") > lines.index(run.bars[-1])
    for stage in ("Starting rbee-hive", "Preflight", "[llm-worker-rbee]", "[tokenizer]"):
        assert any(stage in line for line in lines), stage
    assert lines[-1].endswith(" ms")
    assert (machine.home / ".rbee" / "models.db").exists()
    assert (machine.home / ".rbee" / "beehives.db").exists()


def test_the_second_answer_needs_no_conversion_and_is_the_same(machine: Machine) -> None:
    run = machine.infer(*PROMPT, "--json")
    result = json.loads(run.stdout)
    assert run.code == 0
    assert not any("Converting" in bar for bar in run.bars)
    assert result["text"] + "\n" == machine.cold.stdout
    assert result["stop_reason"] in ("MAX_TOKENS", "EOS")
    assert 0 < result["total_tokens"] <= 8
    assert result["node"] == "localhost"
    assert result["error"] is None


def test_ctrl_c_in_the_middle_of_a_text_ends_everything(machine: Machine) -> None:
    with machine.start(*LONG) as keeper:
        wait_until(lambda: len(keeper.stdout) > 20, 90, "some text")
        keeper.signal(signal.SIGINT)
        run = keeper.outcome(60)
    assert run.code == 130
    assert run.stderr.endswith("\nCanceled.\n")


def test_a_killed_keeper_leaves_nothing_behind(machine: Machine) -> None:
    with machine.start(*LONG) as keeper:
        wait_until(lambda: len(keeper.stdout) > 20, 90, "some text")
        keeper.signal(signal.SIGKILL)
        keeper.outcome(10)
        wait_until(lambda: processes_of(machine.home) == [], 35, "the end of queen, hive and worker")


def test_a_worker_that_dies_leaves_its_text_and_exit_code_1(machine: Machine) -> None:
    with machine.start(*LONG) as keeper:
        wait_until(lambda: len(keeper.stdout) > 20, 90, "some text")
        for worker in workers_of(machine.home):
            worker.kill()
        run = keeper.outcome(60)
    (kept,) = machine.home.glob("rbee-partial-*.txt")
    assert run.code == 1
    assert "Error: SSE stream closed unexpectedly\n" in run.stderr
    assert f"Partial result saved to: {kept}\n" in run.stderr
    assert run.stderr.splitlines()[-1].endswith(" / 1000")
    assert kept.read_text() == run.stdout
    kept.unlink()


def workers_of(home: Path) -> list[psutil.Process]:
    """Worker processes, the serving child included."""
    return [p for p in processes_of(home) if "--worker-id" in arguments(p)]


def test_with_a_queen_that_stays_the_second_answer_comes_from_the_same_worker(machine: Machine) -> None:
    home = machine.home
    assert run_keeper(home, "queen", "start").code == 0
    try:
        first = json.loads(machine.infer(*PROMPT, "--json", "--quiet").stdout)
        again = machine.infer(*PROMPT, "--quiet")
        assert (again.code, again.stderr) == (0, "")
        second = json.loads(machine.infer(*PROMPT, "--json").stdout)
        assert second["worker_id"] == first["worker_id"]
        (worker,) = json.loads(run_keeper(home, "workers", "list", "--json").stdout)["workers"]
        assert (worker["worker_id"], worker["state"]) == (first["worker_id"], "idle")
        health = json.loads(run_keeper(home, "workers", "health", "--node", "localhost", "--json").stdout)
        assert [w["ready"] for w in health["workers"]] == [True]
        (model,) = json.loads(run_keeper(home, "models", "list", "--json").stdout)["models"]
        assert model["model_ref"] == machine.model
        logs = run_keeper(home, "logs", "--node", "localhost", "--lines", "5")
        assert logs.code == 0
        assert logs.stdout
        in_use = run_keeper(home, "models", "remove", machine.model)
        assert in_use.code == 1
        assert "in use" in in_use.stderr
        done = run_keeper(home, "workers", "shutdown", "--id", worker["worker_id"])
        assert done.stdout == f"Shutdown command sent to worker '{worker['worker_id']}'\n"
        wait_until(
            lambda: run_keeper(home, "workers", "list").stdout == "No workers registered\n", 40, "its end"
        )
    finally:
        assert run_keeper(home, "queen", "stop").code == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--node", "mac"), "Node 'mac' not found"),
        (("--backend", "metal"), "Error: Backend 'metal' is not available on localhost"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_stays(
    machine: Machine, args: tuple[str, ...], told: str
) -> None:
    run = machine.infer(*PROMPT, *args)
    assert (run.code, run.stdout) == (1, "")
    assert told in run.stderr


def test_a_missing_model_file_is_told(machine: Machine) -> None:
    run = run_keeper(machine.home, *PROMPT, "--model", "file:/nowhere/m.gguf", timeout_s=120)
    assert (run.code, run.stdout) == (1, "")
    assert "Error: Model 'file:/nowhere/m.gguf' not found" in run.stderr
