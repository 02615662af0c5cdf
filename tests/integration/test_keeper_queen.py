"""The keeper and a real queen: one that lives for a single command, and one that stays."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from support.daemons import environment, wait_until
from support.keeper import RunningKeeper, processes_of, programs_of, run_keeper
from support.processes import arguments, children
from support.scripted import ScriptedHive, free_port


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose daemons use free ports and end quickly; nothing of it may be left."""
    folder = tmp_path / "home"
    config = folder / ".config" / "rbee" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f'[queen]\nurl = "http://127.0.0.1:{free_port()}"\nlocal_hive_port = {free_port()}\n'
        "[timing]\nqueen_drain_timeout_s = 2\n"
    )
    yield folder
    left = processes_of(folder)
    for process in left:
        process.kill()
    assert left == []


def configured_url(home: Path) -> str:
    line = (home / ".config" / "rbee" / "config.toml").read_text().splitlines()[1]
    return line.split('"')[1]


def hive_port(home: Path) -> int:
    lines = (home / ".config" / "rbee" / "config.toml").read_text().splitlines()
    return int(lines[2].removeprefix("local_hive_port = "))


def test_a_command_brings_its_own_queen_and_leaves_nothing_running(home: Path) -> None:
    run = run_keeper(home, "setup", "list-nodes")
    assert (run.code, run.stderr) == (0, "")
    assert run.stdout.startswith("Registered rbee-hive Nodes:\nlocalhost (127.0.0.1)\n")
    assert "No remote nodes registered" in run.stdout
    assert processes_of(home) == []
    assert (home / ".rbee" / "beehives.db").exists()


def test_a_port_somebody_else_holds_is_stepped_round(home: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    port = int(configured_url(home).rsplit(":", 1)[1])
    with HTTPServer(("127.0.0.1", port), Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            run = run_keeper(home, "workers", "list")
        finally:
            server.shutdown()
            thread.join()
    assert (run.code, run.stdout) == (0, "No workers registered\n")


def test_two_commands_at_once_both_get_their_answer(home: Path) -> None:
    with RunningKeeper(home, "workers", "list") as first:
        second = run_keeper(home, "setup", "list-nodes")
        assert (second.code, first.outcome().code) == (0, 0), (second.stderr, first.stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_command_that_found_anothers_queen_goes_on_when_that_other_ends(
    home: Path, number: int, code: int
) -> None:
    model, tokens = "file:/m.gguf", 50
    prompt = ("infer", "--model", model, "--prompt", "x", "--quiet")
    peer = home.parent / "peer"
    # Longer than a queen that is told to end lets its tasks go on (2 s here).
    with (
        ScriptedHive(peer, port=hive_port(home), models=[model], tokens=tokens, token_interval_s=0.1),
        RunningKeeper(home, *prompt) as first,
    ):
        wait_until(lambda: first.stdout, 30, "the first token")
        with RunningKeeper(home, *prompt, folder=peer) as second:
            wait_until(lambda: second.stdout, 30, "the second command's first token")
            first.signal(number)
            assert first.outcome().code == code
            assert second.process.poll() is None
            run = second.outcome()
        assert (run.code, len(run.stdout.split())) == (0, tokens), run.stderr
        # The last command waits for the end of the queen, though it did not start it.
        assert processes_of(home) == []


def test_a_queen_on_its_way_out_is_not_used_but_waited_for(home: Path) -> None:
    with RunningKeeper(home, "models", "list") as first:
        wait_until(lambda: "hive" in programs_of(home), 30, "the hive")
        first.signal(signal.SIGKILL)
        first.outcome()
    run = run_keeper(home, "models", "list")
    assert (run.code, run.stderr) == (0, "")
    assert processes_of(home) == []


def test_no_queen_is_kept_in_place_of_one_that_belongs_to_a_command(home: Path) -> None:
    with RunningKeeper(home, "models", "list") as first:
        wait_until(lambda: "hive" in programs_of(home), 30, "the hive")
        run = run_keeper(home, "queen", "start")
        assert run.code == 1
        assert "it ends with that command" in run.stderr
        assert first.outcome().code == 0


def test_a_queen_that_cannot_start_is_told_in_its_own_words(home: Path) -> None:
    (home / ".rbee").mkdir()
    (home / ".rbee" / "logs").mkdir()
    (home / ".rbee" / "logs" / "queen-rbee.log").mkdir()
    run = run_keeper(home, "workers", "list")
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.startswith("Error: queen-rbee could not be started: ")
    assert "Is a directory" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_state_folder_that_cannot_be_made_is_told(home: Path) -> None:
    (home / ".rbee").write_text("a file")
    run = run_keeper(home, "workers", "list")
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr == f"Error: Cannot use {home}/.rbee: File exists\n"


def test_a_killed_keeper_takes_its_queen_along(home: Path) -> None:
    with RunningKeeper(home, "models", "list") as keeper:
        wait_until(lambda: "hive" in programs_of(home), 30, "the hive")
        keeper.signal(signal.SIGKILL)
        keeper.outcome()
        wait_until(lambda: processes_of(home) == [], 35, "the end of queen and hive")


def test_ctrl_c_during_any_command_ends_everything(home: Path) -> None:
    with RunningKeeper(home, "models", "list") as keeper:
        wait_until(lambda: "hive" in programs_of(home), 30, "the hive")
        keeper.signal(signal.SIGINT)
        run = keeper.outcome()
    assert (run.code, run.stdout) == (130, "")
    assert run.stderr.endswith("Canceled.\n")
    assert processes_of(home) == []


def test_a_second_ctrl_c_does_not_wait_for_a_hive_that_hangs(home: Path) -> None:
    with RunningKeeper(home, "models", "list") as keeper:
        wait_until(lambda: "hive" in programs_of(home), 30, "the hive")
        queen = next(p for p in children(keeper.pid) if "queen" in " ".join(arguments(p)))
        for process in queen.children(recursive=True):
            process.send_signal(signal.SIGSTOP)
        keeper.signal(signal.SIGINT)
        wait_until(lambda: "Canceled." in keeper.stderr, 10)
        keeper.signal(signal.SIGINT)
        assert keeper.outcome(10).code == 130
    assert processes_of(home) == []


def test_what_a_killed_queen_leaves_behind_is_ended_by_its_keeper(home: Path) -> None:
    with RunningKeeper(home, "models", "list") as keeper:
        wait_until(lambda: "hive" in programs_of(home), 30, "the hive")
        (queen,) = children(keeper.pid)
        for process in [p for p in (queen, *children(queen.pid)) if "queen" in " ".join(arguments(p))]:
            process.kill()
        run = keeper.outcome()
    assert run.code == 1
    assert run.stderr.startswith("Error: Cannot reach queen-rbee at ")
    assert processes_of(home) == []


def test_a_background_queen_starts_once_serves_and_stops(home: Path) -> None:
    url = configured_url(home)
    started = run_keeper(home, "queen", "start")
    try:
        record = (home / ".rbee" / "run" / "queen.pid").read_text().split()
        pid = int(record[0])
        assert (started.code, started.stdout) == (0, f"queen-rbee started at {url} (pid {pid})\n")
        again = run_keeper(home, "queen", "start")
        assert (again.code, again.stdout) == (0, f"queen-rbee is already running at {url} (pid {pid})\n")
        status = run_keeper(home, "queen", "status", "--json")
        body = {"url": url, "running": True, "version": "0.1.0", "pid": pid, "reason": None}
        assert (status.code, json.loads(status.stdout)) == (0, body)
        assert run_keeper(home, "workers", "list").stdout == "No workers registered\n"
        assert psutil.pid_exists(pid)
    finally:
        stopped = run_keeper(home, "queen", "stop")
    assert (stopped.code, stopped.stdout) == (0, f"queen-rbee stopped (pid {pid})\n")
    assert processes_of(home) == []
    gone = run_keeper(home, "queen", "status")
    assert (gone.code, gone.stdout) == (1, f"queen-rbee is not running at {url} (Connection refused)\n")
    none = run_keeper(home, "queen", "stop")
    assert (none.code, none.stderr) == (1, 'Error: No queen started by "queen start" is running\n')


def test_commands_find_a_background_queen_on_another_port(home: Path) -> None:
    config = home / ".config" / "rbee" / "config.toml"
    config.write_text(f"[queen]\nlocal_hive_port = {free_port()}\n")
    port = free_port()
    assert run_keeper(home, "queen", "start", "--port", str(port)).code == 0
    try:
        status = run_keeper(home, "queen", "status", "--json")
        assert json.loads(status.stdout)["url"] == f"http://127.0.0.1:{port}"
    finally:
        assert run_keeper(home, "queen", "stop").code == 0


def test_a_stale_record_never_ends_a_stranger(home: Path) -> None:
    run_dir = home / ".rbee" / "run"
    run_dir.mkdir(parents=True)
    stranger = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment(home)
    )
    assert stranger.stdin is not None
    with stranger.stdin:
        (run_dir / "queen.pid").write_text(f"{stranger.pid}\n1000000000.0\n")
        (run_dir / "queen.url").write_text(configured_url(home) + "\n")
        stop = run_keeper(home, "queen", "stop")
        assert stop.code == 1
        assert stranger.poll() is None
        assert not (run_dir / "queen.pid").exists()
        assert run_keeper(home, "queen", "status", "--json").code == 1
    stranger.wait(10)


def test_a_queen_elsewhere_is_never_started(home: Path) -> None:
    run = run_keeper(home, "--queen-url", "http://192.0.2.1:8080", "workers", "list")
    assert run.code == 1
    assert run.stderr.startswith("Error: Cannot reach queen-rbee at http://192.0.2.1:8080: ")
    assert not (home / ".rbee").exists()


def test_logs_never_starts_a_queen(home: Path) -> None:
    run = run_keeper(home, "logs", "--node", "localhost")
    assert run.code == 1
    assert run.stderr.splitlines() == [
        f"Error: Cannot reach queen-rbee at {configured_url(home)}: Connection refused",
        "Suggestion: Start a queen (rbee-keeper queen start) or check --queen-url",
    ]
    assert not (home / ".rbee").exists()
    assert os.listdir(home) == [".config"]
