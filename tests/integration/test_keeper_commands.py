"""Every command but `infer` against a scripted queen: what is sent, what is shown, how it ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.daemons import environment, wait_until
from support.keeper import Outcome, RunningKeeper, run_keeper
from support.scripted_queen import ScriptedQueen, Stream

WORKER = {
    "worker_id": "worker-1",
    "node": "localhost",
    "state": "idle",
    "model_ref": "file:/m",
    "url": "http://w",
}


def error(code: str, message: str, **details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": details}}


def call(home: Path, queen: ScriptedQueen, *args: str, **options: Any) -> Outcome:
    return run_keeper(home, "--queen-url", queen.url, *args, **options)


def test_lists_are_text_for_people_and_the_queens_body_for_programs(tmp_path: Path) -> None:
    body = {"workers": [WORKER], "unreachable": ["mac"]}
    with ScriptedQueen(answers={"GET /v2/workers/list": (200, body)}) as queen:
        text = call(tmp_path, queen, "workers", "list")
        as_json = call(tmp_path, queen, "workers", "list", "--json")
    assert text.code == 0
    assert "worker-1" in text.stdout
    assert "mac" in text.stderr
    assert json.loads(as_json.stdout) == body


def test_a_node_is_added_after_its_login_was_tested(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    key = tmp_path / ".ssh" / "id"
    key.write_text("key")
    flags = [
        "--ssh-host",
        "ws.home.arpa",
        "--ssh-user",
        "ann",
        "--ssh-key",
        "~/.ssh/id",
        "--install-path",
        "~/rbee",
    ]
    more = [
        "--backends",
        '["cuda","cpu"]',
        "--devices",
        '{"cuda":2,"cpu":1}',
        "--git-repo",
        "https://x/y.git",
    ]
    with ScriptedQueen(answers={"POST /v2/registry/beehives/add": (200, {"success": True})}) as queen:
        run = call(tmp_path, queen, "setup", "add-node", "--name", "ws", *flags, *more)
        (sent,) = queen.requests("POST", "/v2/registry/beehives/add")
    assert (run.code, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "[queen-rbee] 🔌 Testing SSH connection to ws.home.arpa",
        "[queen-rbee] ✅ SSH connection successful! Node 'ws' saved to registry",
    ]
    assert sent.body == {
        "node_name": "ws",
        "ssh_host": "ws.home.arpa",
        "ssh_user": "ann",
        "ssh_port": 22,
        "ssh_key_path": str(key),
        "install_path": "/home/ann/rbee",
        "git_repo_url": "https://x/y.git",
        "git_branch": "main",
        "hive_port": 9200,
        "backends": ["cuda", "cpu"],
        "devices": {"cuda": 2, "cpu": 1},
    }


def test_a_failed_login_is_told_on_both_streams(tmp_path: Path) -> None:
    body = error(
        "SSH_CONNECTION_FAILED",
        "SSH connection failed: Connection timeout",
        host="h",
        reason="Connection timeout",
    )
    flags = ["--ssh-host", "h", "--ssh-user", "u", "--install-path", "/opt/rbee"]
    with ScriptedQueen(answers={"POST /v2/registry/beehives/add": (502, body)}) as queen:
        run = call(tmp_path, queen, "setup", "add-node", "--name", "n", *flags)
    assert run.code == 1
    assert run.stdout.splitlines()[-1] == "[queen-rbee] ❌ SSH connection failed: Connection timeout"
    assert run.stderr.startswith("Error: SSH connection failed: Connection timeout\n")


def test_a_missing_key_file_is_reported_before_any_request(tmp_path: Path) -> None:
    flags = ["--ssh-host", "h", "--ssh-user", "u", "--install-path", "/opt/rbee", "--ssh-key", "~/none"]
    with ScriptedQueen() as queen:
        run = call(tmp_path, queen, "setup", "add-node", "--name", "n", *flags)
        assert queen.received == []
    assert (run.code, run.stdout) == (1, "")
    assert f"Error: SSH key file not found: {tmp_path}/none" in run.stderr


def test_an_update_sends_only_what_changes(tmp_path: Path) -> None:
    with ScriptedQueen(answers={"POST /v2/registry/beehives/update": (200, {"success": True})}) as queen:
        run = call(tmp_path, queen, "setup", "update-node", "--name", "n", "--hive-port", "9300")
        (sent,) = queen.requests("POST", "/v2/registry/beehives/update")
    assert (run.code, run.stdout) == (0, "[queen-rbee] ✅ Node 'n' updated in registry\n")
    assert sent.body == {"node_name": "n", "hive_port": 9300}


@pytest.mark.parametrize(
    ("args", "route", "body", "line"),
    [
        (
            ["setup", "remove-node", "--name", "mac"],
            "POST /v2/registry/beehives/remove",
            {"node_name": "mac"},
            "[queen-rbee] ✅ Node 'mac' removed from registry",
        ),
        (
            ["workers", "shutdown", "--id", "worker-1"],
            "POST /v2/workers/shutdown",
            {"worker_id": "worker-1"},
            "Shutdown command sent to worker 'worker-1'",
        ),
        (
            ["models", "remove", "file:///m.gguf", "--node", "mac"],
            "POST /v2/models/remove",
            {"node": "mac", "model": "file:/m.gguf"},
            "Model 'file:/m.gguf' removed",
        ),
    ],
)
def test_a_change_is_confirmed_or_refused_with_exit_code_1(
    tmp_path: Path, args: list[str], route: str, body: dict[str, str], line: str
) -> None:
    method, path = route.split()
    with ScriptedQueen(answers={route: (200, {"success": True, "message": "m"})}) as queen:
        done = call(tmp_path, queen, *args)
        assert queen.requests(method, path)[0].body == body
        queen.answers[route] = (409, error("MODEL_IN_USE", "it is in use"))
        refused = call(tmp_path, queen, *args)
    assert (done.code, done.stdout, done.stderr) == (0, line + "\n", "")
    assert (refused.code, refused.stdout, refused.stderr) == (1, "", "Error: it is in use\n")


def test_a_pull_shows_its_bar_and_prints_the_path(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        stream.progress(stage="downloading", bytes_downloaded=1, bytes_total=2, speed_mbps=1.0)
        stream.event({"done": True, "model": "hf:a/b", "local_path": "/m/b.gguf"})

    with ScriptedQueen(streams={"POST /v2/models/pull": script}) as queen:
        run = call(tmp_path, queen, "models", "pull", "hf:a/b")
        (sent,) = queen.requests("POST", "/v2/models/pull")
    assert (run.code, run.stdout) == (0, "/m/b.gguf\n")
    assert sent.body == {"node": "localhost", "model": "hf:a/b"}
    assert run.bars


@pytest.mark.parametrize("is_torn", [True, False])
def test_a_pull_that_fails_or_breaks_off_is_no_success(tmp_path: Path, is_torn: bool) -> None:
    def script(stream: Stream) -> None:
        if is_torn:
            stream.cut()
        else:
            stream.error(
                "DOWNLOAD_FAILED", "failed", {"attempts": 6, "last_error": "Connection reset by peer"}
            )

    with ScriptedQueen(streams={"POST /v2/models/pull": script}) as queen:
        run = call(tmp_path, queen, "models", "pull", "hf:a/b")
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.startswith("Error: ")
    if not is_torn:
        assert run.stderr == "Error: Model download failed after 6 attempts: Connection reset by peer\n"


def log_lines(stream: Stream) -> None:
    for minute, source in ((0, "rbee-hive"), (5, "worker-1")):
        line = json.dumps({"timestamp": f"2026-01-31T08:0{minute}:00.000Z", "event": "e"})
        stream.event({"source": source, "line": line})
    stream.event({"source": "worker-1", "line": "  continued"})
    stream.raw(b"data: [DONE]\n\n")


def test_log_lines_are_printed_as_they_are(tmp_path: Path) -> None:
    with ScriptedQueen(streams={"GET /v2/logs": log_lines}) as queen:
        run = call(tmp_path, queen, "logs", "--node", "mac", "--id", "worker-1")
        as_json = call(tmp_path, queen, "logs", "--node", "mac", "--json", "--since", "2026-01-31T08:01:00")
        first, second = queen.requests("GET", "/v2/logs")
    assert run.code == 0
    assert [json.loads(line)["event"] for line in run.stdout.splitlines()[:2]] == ["e", "e"]
    assert run.stdout.splitlines()[2] == "  continued"
    assert "node=mac&follow=false&lines=100&worker_id=worker-1" in first.path
    assert "lines=10000" in second.path
    assert [json.loads(line)["source"] for line in as_json.stdout.splitlines()] == ["worker-1", "worker-1"]


def test_lines_that_a_node_no_longer_gives_are_told(tmp_path: Path) -> None:
    def many(stream: Stream) -> None:
        line = json.dumps({"timestamp": "2026-01-31T08:00:00.000Z", "event": "e"})
        for _ in range(10_000):
            stream.event({"source": "rbee-hive", "line": line})
        stream.raw(b"data: [DONE]\n\n")

    with ScriptedQueen(streams={"GET /v2/logs": many}) as queen:
        cut = call(tmp_path, queen, "logs", "--node", "mac", "--since", "2026-01-31T07:00:00Z")
        whole = call(tmp_path, queen, "logs", "--node", "mac", "--since", "2026-01-31T09:00:00Z")
    assert (cut.code, len(cut.stdout.splitlines())) == (0, 10_000)
    assert cut.stderr == "Older lines are left out: a node gives the last 10000\n"
    assert (whole.code, whole.stdout, whole.stderr) == (0, "", "")


def test_following_logs_ends_with_ctrl_c_and_130(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        stream.event({"source": "rbee-hive", "line": "first"})
        stream.wait_for_client_gone()

    with (
        ScriptedQueen(streams={"GET /v2/logs": script}) as queen,
        RunningKeeper(tmp_path, "--queen-url", queen.url, "logs", "--node", "n", "--follow") as keeper,
    ):
        keeper.wait_for("first")
        keeper.signal(signal.SIGINT)
        assert keeper.outcome(10).code == 130
        wait_until(queen.client_gone.is_set)


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ((401, error("INVALID_API_KEY", "Invalid or missing API key")), "Error: Authentication failed"),
        ((200, {"service": "rbee-hive"}), "is not a queen-rbee: it is rbee-hive"),
    ],
)
def test_a_queen_that_refuses_or_is_none_is_told(tmp_path: Path, health: tuple[int, Any], told: str) -> None:
    with ScriptedQueen(health=health) as queen:
        run = call(tmp_path, queen, "logs", "--node", "localhost", extra={"RBEE_API_KEY": "k" * 16})
    assert (run.code, run.stdout) == (1, "")
    assert told in run.stderr
    assert "k" * 16 not in run.stderr
    if health[0] == 401:
        assert run.stderr.splitlines() == [
            "Error: Authentication failed",
            "  Invalid API key for 127.0.0.1",
            "Check your configuration:",
            f"  {tmp_path}/.config/rbee/config.toml",
        ]


@pytest.mark.parametrize(
    "answer",
    [(200, b"<html>"), (200, []), (500, b"oops"), (302, None)],
    ids=["html", "list", "500", "redirect"],
)
def test_an_answer_no_queen_gives_is_an_error_without_a_traceback(
    tmp_path: Path, answer: tuple[int, Any]
) -> None:
    with ScriptedQueen(answers={"GET /v2/workers/list": answer}) as queen:
        run = call(tmp_path, queen, "workers", "list")
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.startswith("Error: ")
    assert "Traceback" not in run.stderr


def test_a_queen_elsewhere_that_is_not_there_is_told_and_none_is_started(tmp_path: Path) -> None:
    run = run_keeper(tmp_path, "--queen-url", "http://unreachable.invalid:8080", "workers", "list")
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.startswith("Error: Cannot reach queen-rbee at http://unreachable.invalid:8080: ")
    assert not (tmp_path / ".rbee").exists()


def test_a_wrong_configuration_is_told_with_file_and_key(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[queen]\nspeed = 3\n")
    run = run_keeper(tmp_path, "workers", "list", "--config", str(config))
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr == f"Error: {config}: queen.speed: unknown key\n"
    missing = run_keeper(tmp_path, "workers", "list", extra={"RBEE_CONFIG": "/nowhere/c.toml"})
    assert (missing.code, missing.stderr) == (1, "Error: RBEE_CONFIG names a missing file: /nowhere/c.toml\n")


def test_the_url_comes_from_flag_environment_file_and_default_in_this_order(tmp_path: Path) -> None:
    config = tmp_path / ".config" / "rbee" / "config.toml"

    def url(*args: str, **extra: str) -> str:
        run = run_keeper(tmp_path, "queen", "status", "--json", *args, extra=extra)
        return str(json.loads(run.stdout)["url"])

    assert (
        url("--queen-url", "http://127.0.0.1:1", RBEE_QUEEN_URL="http://127.0.0.1:2") == "http://127.0.0.1:1"
    )
    assert url(RBEE_QUEEN_URL="http://127.0.0.1:2") == "http://127.0.0.1:2"
    config.parent.mkdir(parents=True)
    config.write_text('[queen]\nurl = "http://127.0.0.1:3"\n')
    assert url() == "http://127.0.0.1:3"
    config.unlink()
    assert url() == "http://127.0.0.1:8080"


def test_an_unexpected_failure_is_one_line_and_a_log(tmp_path: Path) -> None:
    body = {"workers": [17], "unreachable": []}
    with ScriptedQueen(answers={"GET /v2/workers/list": (200, body)}) as queen:
        run = call(tmp_path, queen, "workers", "list")
    log = tmp_path / ".rbee" / "logs" / "rbee-keeper.log"
    assert (run.code, run.stdout) == (1, "")
    assert run.stderr.splitlines() == ["Error: internal error (AttributeError)", f"  Log: {log}"]
    assert "Traceback" in log.read_text()


def test_completion_scripts_complete_both_program_names(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        run = run_keeper(tmp_path, "completion", shell)
        assert run.code == 0
        assert "_RBEE_KEEPER_COMPLETE" in run.stdout
        assert "_RBEE_COMPLETE" in run.stdout


def test_completion_answers_with_commands_and_flags(tmp_path: Path) -> None:
    asked = {"_RBEE_KEEPER_COMPLETE": "bash_complete", "COMP_WORDS": "rbee-keeper inf", "COMP_CWORD": "1"}
    assert run_keeper(tmp_path, extra=asked).stdout == "plain,infer\n"
    asked = {**asked, "COMP_WORDS": "rbee-keeper infer --max", "COMP_CWORD": "2"}
    assert run_keeper(tmp_path, extra=asked).stdout == "plain,--max-tokens\n"


def test_the_help_of_the_program_loads_no_heavy_library(tmp_path: Path) -> None:
    heavy = {"requests", "urllib3", "pydantic", "psutil", "http", "ctypes", "asyncio"}
    source = (
        "import sys\nfrom rbee_keeper.cli import run\n"
        f"code = run(['rbee-keeper', '--help'], {{}})\nprint(sorted({heavy!r} & set(sys.modules)), code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr
