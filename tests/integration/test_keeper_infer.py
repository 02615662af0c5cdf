"""`infer` against a scripted queen: what the user sees for every way a stream can go."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import stat
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

from support.daemons import environment, wait_until
from support.keeper import COMMAND, Outcome, RunningKeeper, run_keeper
from support.scripted_queen import REQUEST_ID, Script, ScriptedQueen, Stream


def infer(home: Path, queen: ScriptedQueen, *args: str, **options: Any) -> Outcome:
    return run_keeper(home, "--queen-url", queen.url, "infer", "--prompt", "hello", *args, **options)


def story(stream: Stream) -> None:
    stream.narrate("looking for a worker")
    stream.started()
    stream.tokens("Once", " upon", " a", " time")
    stream.done(4)


def test_tokens_alone_go_to_standard_output(tmp_path: Path) -> None:
    with ScriptedQueen(story) as queen:
        run = infer(tmp_path, queen)
    assert (run.code, run.stdout) == (0, "Once upon a time\n")
    assert run.stderr.splitlines() == ["[queen-rbee] looking for a worker", "4 tokens in 118 ms"]


def test_quiet_leaves_nothing_but_the_tokens(tmp_path: Path) -> None:
    with ScriptedQueen(story) as queen:
        run = infer(tmp_path, queen, "--quiet")
    assert (run.code, run.stdout, run.stderr) == (0, "Once upon a time\n", "")


def test_json_is_one_object_at_the_end(tmp_path: Path) -> None:
    with ScriptedQueen(story) as queen:
        run = infer(tmp_path, queen, "--json")
    assert run.code == 0
    assert json.loads(run.stdout) == {
        "request_id": REQUEST_ID,
        "node": "localhost",
        "worker_id": "worker-1",
        "model": "file:/m.gguf",
        "text": "Once upon a time",
        "total_tokens": 4,
        "duration_ms": 118,
        "stop_reason": "MAX_TOKENS",
        "error": None,
    }


def test_only_what_was_asked_is_sent_with_the_version_and_the_key(tmp_path: Path) -> None:
    flags = [
        "--temperature",
        "0",
        "--top-k",
        "0",
        "--stop",
        "x",
        "--stop",
        "y",
        "--timeout",
        "9",
        "--retry",
        "0",
    ]
    with ScriptedQueen(story) as queen:
        infer(tmp_path, queen, *flags, "--node", "mac", extra={"RBEE_API_KEY": "k" * 16})
        infer(tmp_path, queen)
        first, second = queen.requests("POST", "/v2/tasks")
    assert first.body == {
        "prompt": "hello",
        "max_tokens": 100,
        "temperature": 0.0,
        "top_k": 0,
        "stop": ["x", "y"],
        "timeout_seconds": 9,
        "busy_retries": 0,
        "node": "mac",
    }
    assert first.headers["X-Rbee-Version"] == "0.1.0"
    assert first.headers["Authorization"] == "Bearer " + "k" * 16
    assert len(first.headers["X-Correlation-ID"]) == 36
    assert second.body == {"prompt": "hello", "max_tokens": 100}


def test_a_dash_as_prompt_reads_standard_input(tmp_path: Path) -> None:
    with ScriptedQueen(story) as queen:
        args = ("--queen-url", queen.url, "infer", "--prompt", "-")
        assert run_keeper(tmp_path, *args, stdin="grüße\nzwei\n".encode()).code == 0
        assert run_keeper(tmp_path, *args, stdin=b"\xff\xfe").code == 2
        assert run_keeper(tmp_path, *args, stdin=b"").code == 2
        (sent,) = queen.requests("POST", "/v2/tasks")
    assert sent.body["prompt"] == "grüße\nzwei"


def test_bars_are_lines_with_the_first_and_the_last_of_each_stage(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        for done in range(0, 5 * 1048576 + 1, 65536):
            stream.progress(
                stage="downloading", bytes_downloaded=done, bytes_total=5 * 1048576, speed_mbps=45.2
            )
        for done in range(273):
            stream.progress(stage="converting", tensors_done=done, tensors_total=272)
        for done in range(33):
            stream.progress(stage="loading_to_vram", layers_loaded=done, layers_total=32, vram_mb=done)
        story(stream)

    with ScriptedQueen(script) as queen:
        run = infer(tmp_path, queen)
    bars = run.bars
    assert bars[0] == "Downloading model... [--------------------] 0% (0.0 MB / 5.0 MB) @ 45.2 MB/s"
    assert "Downloading model... [████████████████████] 100% (5.0 MB / 5.0 MB) @ 45.2 MB/s" in bars
    assert "Converting model... [--------------------] 0% (0/272 tensors)" in bars
    assert "Converting model... [████████████████████] 100% (272/272 tensors)" in bars
    assert bars[-1] == "Loading model to VRAM... [████████████████████] 100% (32/32 layers)"
    lines = run.stderr.splitlines()
    assert lines[lines.index(bars[-1]) + 1 :][:2] == ["[queen-rbee] looking for a worker", "Model ready!"]
    assert len(bars) < 30, "more than ten a second"


def test_retries_are_told_without_a_prefix_after_the_bar_they_interrupt(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        for percent in (0, 20, 40):
            done = 5 * 1048576 * percent // 100
            stream.progress(
                stage="downloading", bytes_downloaded=done, bytes_total=5 * 1048576, speed_mbps=45.2
            )
        stream.narrate("Error: Connection reset by peer", "model-provisioner", "retry")
        stream.narrate("Retrying download (attempt 2/6)... delay 100ms", "model-provisioner", "retry")
        story(stream)

    with ScriptedQueen(script) as queen:
        run = infer(tmp_path, queen)
    lines = run.stderr.splitlines()
    at = lines.index("Downloading model... [████████------------] 40% (2.0 MB / 5.0 MB) @ 45.2 MB/s")
    assert lines[at + 1 : at + 3] == [
        "Error: Connection reset by peer",
        "Retrying download (attempt 2/6)... delay 100ms",
    ]


def test_an_unknown_node_is_told_with_the_command_that_adds_it(tmp_path: Path) -> None:
    error = {"code": "NODE_NOT_FOUND", "message": "Node 'mac' not found", "details": {"node": "mac"}}
    with ScriptedQueen(answers={"POST /v2/tasks": (404, {"error": error})}) as queen:
        run = infer(tmp_path, queen, "--node", "mac")
        as_json = infer(tmp_path, queen, "--node", "mac", "--json")
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.splitlines() == [
        "[queen-rbee] ❌ ERROR: Node 'mac' not found in rbee-hive registry",
        "",
        "To add this node, run:",
        "  rbee-keeper setup add-node --name mac --ssh-host mac.home.arpa --ssh-user <user> "
        "--install-path ~/rbee",
    ]
    assert (as_json.code, json.loads(as_json.stdout)["error"]["code"]) == (1, "NODE_NOT_FOUND")


def test_an_error_in_the_stream_is_told_in_its_own_form(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        for seconds in ("1 second", "2 seconds", "4 seconds"):
            stream.narrate(f"Worker is busy, retrying in {seconds}...", action="retry")
        stream.error("ALL_SLOTS_BUSY", "Worker is busy", {"slots_total": 1, "slots_busy": 1, "retries": 3})

    with ScriptedQueen(script) as queen:
        run = infer(tmp_path, queen)
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.splitlines() == [
        "Worker is busy, retrying in 1 second...",
        "Worker is busy, retrying in 2 seconds...",
        "Worker is busy, retrying in 4 seconds...",
        "Error: Worker still busy after 3 retries",
        "Suggestion: Wait for current request to complete or use a different node",
    ]


def crash(stream: Stream) -> None:
    stream.started()
    stream.tokens("Once", " upon")
    stream.error(
        "WORKER_CRASHED", "SSE stream closed unexpectedly", {"worker_id": "w", "tokens_generated": 2}
    )


def no_terminal_event(stream: Stream) -> None:
    stream.started()
    stream.tokens("Once", " upon")


def torn(stream: Stream) -> None:
    no_terminal_event(stream)
    stream.cut()


@pytest.mark.parametrize("script", [crash, no_terminal_event, torn])
def test_a_stream_that_fails_after_its_first_token_leaves_its_text(tmp_path: Path, script: Script) -> None:
    with ScriptedQueen(script) as queen:
        run = infer(tmp_path, queen, "--max-tokens", "20")
    kept = tmp_path / f"rbee-partial-{REQUEST_ID}.txt"
    assert (run.code, run.stdout) == (1, "Once upon")
    assert run.stderr.splitlines() == [
        "Error: SSE stream closed unexpectedly",
        f"Partial result saved to: {kept}",
        "Tokens generated: 2 / 20",
    ]
    assert kept.read_text() == run.stdout
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_tokens_out_of_order_are_a_failure_and_no_text(tmp_path: Path) -> None:
    def mixed(stream: Stream) -> None:
        stream.started()
        for index, text in ((0, "Once"), (2, " a"), (1, " upon")):
            stream.event({"token": text, "index": index})
        stream.done(3)

    with ScriptedQueen(mixed) as queen:
        run = infer(tmp_path, queen, "--max-tokens", "20")
    assert (run.code, run.stdout) == (1, "Once")
    assert "Error: The stream's tokens are not in order" in run.stderr
    assert "Suggestion: Run the command again" in run.stderr


def test_a_stream_cut_before_its_first_token_saves_nothing(tmp_path: Path) -> None:
    with ScriptedQueen(lambda stream: stream.cut()) as queen:
        run = infer(tmp_path, queen, "--json")
    assert run.code == 1
    assert run.stderr == "Error: SSE stream closed unexpectedly\n"
    assert json.loads(run.stdout)["error"]["code"] == "WORKER_CRASHED"
    assert list(tmp_path.glob("rbee-partial-*")) == []


def test_a_partial_file_prepared_by_someone_else_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"rbee-partial-{REQUEST_ID}.txt").symlink_to(victim)
    with ScriptedQueen(crash) as queen:
        run = infer(tmp_path, queen)
    kept = tmp_path / f"rbee-partial-{REQUEST_ID}-2.txt"
    assert f"Partial result saved to: {kept}" in run.stderr
    assert (victim.read_text(), kept.read_text()) == ("precious", "Once upon")


def holds(stream: Stream) -> None:
    stream.started()
    stream.tokens("Once", " upon")
    stream.wait_for_client_gone()


def test_ctrl_c_cancels_the_task_at_the_queen_and_exits_130(tmp_path: Path) -> None:
    with (
        ScriptedQueen(holds) as queen,
        RunningKeeper(tmp_path, "--queen-url", queen.url, "infer", "--prompt", "x") as keeper,
    ):
        keeper.wait_for(" upon")
        keeper.signal(signal.SIGINT)
        run = keeper.outcome(10)
        assert queen.requests("DELETE", f"/v2/tasks/{REQUEST_ID}")
    assert (run.code, run.stdout) == (130, "Once upon")
    assert run.stderr.endswith("\nCanceled.\n")
    assert list(tmp_path.glob("rbee-partial-*")) == []


def test_a_cancel_nobody_acknowledges_says_so(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[timing]\ncancel_ack_timeout_s = 0.2\n")
    with (
        ScriptedQueen(holds, cancel_is_deaf=True) as queen,
        RunningKeeper(
            tmp_path, "--config", str(config), "--queen-url", queen.url, "infer", "--prompt", "x"
        ) as keeper,
    ):
        keeper.wait_for(" upon")
        keeper.signal(signal.SIGINT)
        run = keeper.outcome(10)
    assert run.code == 130
    assert run.stderr.endswith("\nCanceled. (worker may still be processing)\n")


def test_a_second_ctrl_c_does_not_wait_for_the_acknowledgement(tmp_path: Path) -> None:
    with (
        ScriptedQueen(holds, cancel_is_deaf=True) as queen,
        RunningKeeper(tmp_path, "--queen-url", queen.url, "infer", "--prompt", "x") as keeper,
    ):
        keeper.wait_for(" upon")
        keeper.signal(signal.SIGINT)
        wait_until(lambda: queen.requests("DELETE", f"/v2/tasks/{REQUEST_ID}"))
        keeper.signal(signal.SIGINT)
        assert keeper.outcome(3).code == 130


def test_sigterm_cancels_too_and_shows_in_the_status(tmp_path: Path) -> None:
    with (
        ScriptedQueen(holds) as queen,
        RunningKeeper(tmp_path, "--queen-url", queen.url, "infer", "--prompt", "x", "--json") as keeper,
    ):
        wait_until(lambda: queen.requests("POST", "/v2/tasks"))
        keeper.signal(signal.SIGTERM)
        assert keeper.outcome(10).code == -signal.SIGTERM


def test_ctrl_c_under_json_still_prints_the_object(tmp_path: Path) -> None:
    with (
        ScriptedQueen(holds) as queen,
        RunningKeeper(tmp_path, "--queen-url", queen.url, "infer", "--prompt", "x", "--json") as keeper,
    ):
        wait_until(lambda: queen.requests("POST", "/v2/tasks"))
        keeper.signal(signal.SIGINT)
        run = keeper.outcome(10)
    assert run.code == 130
    assert json.loads(run.stdout)["error"]["code"] == "REQUEST_CANCELED"


def test_a_reader_that_leaves_ends_the_task_without_a_word(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        stream.started()
        stream.tokens("first line\n")
        while not stream._queen.canceled.wait(0.02):
            stream.tokens("more\n")

    with ScriptedQueen(script) as queen:
        keeper = subprocess.Popen(
            [*COMMAND, "--queen-url", queen.url, "infer", "--prompt", "x"],
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        with keeper.stdout, keeper.stderr:
            assert keeper.stdout.readline() == b"first line\n"
            keeper.stdout.close()
            assert keeper.wait(10) == 1
            assert keeper.stderr.read() == b""
        assert queen.requests("DELETE", f"/v2/tasks/{REQUEST_ID}")


def test_a_full_disk_behind_standard_output_is_an_error(tmp_path: Path) -> None:
    with ScriptedQueen(story) as queen, open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "--queen-url", queen.url, "infer", "--prompt", "x", "--quiet"],
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: Cannot write to standard output: No space left on device\n"


def test_wrong_usage_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    with ScriptedQueen(story) as queen:
        run = infer(tmp_path, queen, "--model", "nonsense")
        assert queen.received == []
    assert (run.code, run.stdout) == (2, "")
    assert "Error: Invalid value for '--model'" in run.stderr
    assert "Suggestion: Use hf:ORG/REPO" in run.stderr


def on_a_terminal(home: Path, *args: str) -> tuple[int, str]:
    """Run the keeper with both streams on one terminal; its exit code and what the terminal received."""
    leader, follower = pty.openpty()
    try:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        keeper = subprocess.Popen(
            [*COMMAND, *args],
            env={**environment(home), "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)
        received = b""
        with contextlib.suppress(OSError):  # Linux reports the end of the last writer as EIO.
            while piece := os.read(leader, 65536):
                received += piece
        return keeper.wait(30), received.decode().replace("\r\n", "\n")
    finally:
        os.close(leader)


def test_on_a_terminal_the_bar_moves_in_place_and_the_text_stays_in_one_piece(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        for done in (0, 16, 32):
            stream.progress(stage="loading_to_vram", layers_loaded=done, layers_total=32, vram_mb=done)
        stream.started()
        stream.tokens("Once", " upon")
        stream.narrate("Generated 2 tokens", "ct2-backend", "token_generate")
        stream.tokens(" a\x1b[2J", " time")
        stream.narrate("Generated 4 tokens in 118 ms", "ct2-backend", "inference_complete")
        stream.done(4)

    with ScriptedQueen(script) as queen:
        code, seen = on_a_terminal(tmp_path, "--queen-url", queen.url, "infer", "--prompt", "x", "--no-color")
    finished = [line.split("\r\x1b[K")[-1] for line in seen.removesuffix("\n").split("\n")]
    assert code == 0
    assert finished == [
        "Loading model to VRAM... [████████████████████] 100% (32/32 layers)",
        "Model ready!",
        "Once upon a\\x1b[2J time",
        "[ct2-backend] Generated 4 tokens in 118 ms",
        "4 tokens in 118 ms",
    ]


def test_a_crash_on_a_terminal_is_told_below_the_text(tmp_path: Path) -> None:
    with ScriptedQueen(crash) as queen:
        code, seen = on_a_terminal(tmp_path, "--queen-url", queen.url, "infer", "--prompt", "x")
    assert code == 1
    assert seen.startswith("Once upon\n\x1b[31mError: SSE stream closed unexpectedly\x1b[0m\n")
