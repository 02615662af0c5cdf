"""How a worker process is started: arguments, environment, key file, output – with real children."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path

import gevent
import psutil
import pytest

from rbee.core.errors import WorkerStartFailed
from rbee.core.settings import Pool, Settings
from rbee.hive.adapters import worker_process
from rbee.hive.adapters.worker_process import ChildWorkerLauncher, worker_command, worker_environment
from rbee.hive.ports import WorkerOrder
from support.daemons import wait_until
from support.processes import is_alive

REPORT = """
import json, os, sys
print(json.dumps({"type": "narration", "actor": "llm-worker-rbee", "action": "startup", "human": "hello"}))
print("plain words", flush=True)
print('{"broken', flush=True)
print("to stderr", file=sys.stderr, flush=True)
facts = {"argv": sys.argv[1:], "environ": dict(os.environ), "group": os.getpgrp(), "pid": os.getpid(),
         "stdin": sys.stdin.read(), "fds": sorted(os.listdir("/proc/self/fd"))}
print(json.dumps(facts), flush=True)
"""
SLEEP = "import time; time.sleep(600)"


def order(worker_id: str = "worker-1") -> WorkerOrder:
    return WorkerOrder(worker_id, Path("/models/x y"), "hf:a/b", "cpu", 0, 8001, "key-secret", 3)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return Settings(home=tmp_path)


def launcher(settings: Settings, program: str, environ: dict[str, str] | None = None) -> ChildWorkerLauncher:
    script = settings.home / "program.py"
    script.write_text(program)
    pool = Pool(worker_command=f"{sys.executable} {script}")
    return ChildWorkerLauncher(
        settings.model_copy(update={"pool": pool}),
        host="127.0.0.1",
        callback_url="http://127.0.0.1:9200/v1/workers/ready",
        environ={"PATH": os.environ["PATH"], **(environ or {})},
    )


def ignore(*_story: str) -> None:
    return None


def test_the_default_command_is_the_program_of_this_environment() -> None:
    command = worker_command("llm-worker-rbee")
    assert command[0] in (str(Path(sys.executable).with_name("llm-worker-rbee")), sys.executable)
    assert worker_command("/opt/a\\ b/worker --flag 'x y'") == ["/opt/a b/worker", "--flag", "x y"]


def test_a_worker_inherits_no_secret() -> None:
    given = {
        "PATH": "/bin",
        "RBEE_API_KEY": "k",
        "HF_TOKEN": "t",
        "AWS_SECRET_ACCESS_ID": "s",
        "DB_PASSWORD": "p",
        "CUDA_VISIBLE_DEVICES": "1",
        "RBEE_CONFIG": "/x",
        "RBEE_HOME": "/home",
    }
    environ = worker_environment(given)
    assert environ == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "RBEE_HOME": "/home",
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_a_worker_gets_its_flags_and_its_key_in_a_private_file(settings: Settings) -> None:
    heard: list[tuple[str, str, str]] = []
    starter = launcher(settings, REPORT, {"RBEE_API_KEY": "fleet-key-fleet-key"})
    process = starter.launch(order(), lambda *story: heard.append(story))
    key_file = settings.run_dir / "worker-1.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.read_text() == "key-secret\n"
    assert process.wait() == 0
    assert heard == [("llm-worker-rbee", "startup", "hello")]
    lines = starter.log_path("worker-1").read_text().splitlines()
    assert {"plain words", '{"broken', "to stderr"} <= set(lines)
    facts = json.loads(next(line for line in lines if line.startswith('{"argv"')))
    pairs = dict(zip(facts["argv"][::2], facts["argv"][1::2], strict=True))
    assert pairs == {
        "--worker-id": "worker-1",
        "--model": "/models/x y",
        "--model-ref": "hf:a/b",
        "--backend": "cpu",
        "--device": "0",
        "--port": "8001",
        "--host": "127.0.0.1",
        "--callback-url": "http://127.0.0.1:9200/v1/workers/ready",
        "--api-key": f"@{key_file}",
    }
    assert "RBEE_API_KEY" not in facts["environ"]
    passed = json.loads(facts["environ"]["RBEE_WORKER_SETTINGS"])
    assert passed["worker"]["context_tokens"] == 2048
    assert passed["worker"]["max_parallel_requests"] == 3
    assert passed["timing"]["sse_keepalive_s"] == 10
    assert "key-secret" not in json.dumps(facts)
    assert facts["group"] == facts["pid"] == process.pid
    assert facts["stdin"] == ""
    starter.forget("worker-1")
    starter.forget("worker-1")
    assert not key_file.exists()


def test_no_descriptor_of_the_hive_reaches_a_worker(settings: Settings) -> None:
    with (settings.home / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        starter = launcher(settings, REPORT)
        starter.launch(order(), ignore).wait()
    lines = starter.log_path("worker-1").read_text().splitlines()
    facts = json.loads(next(line for line in lines if line.startswith('{"argv"')))
    # Standard streams, and the one by which the list itself is read.
    assert len(facts["fds"]) == 4


def test_output_is_read_on_when_its_log_cannot_be_written(settings: Settings) -> None:
    program = "import os\nos.remove(LOG)\nos.mkdir(LOG)\nfor n in range(9000): print('x' * 60)\n" + (
        """print('{"type": "narration", "actor": "a", "action": "b", "human": "end"}', flush=True)"""
    )
    log = settings.log_dir / "worker-1.log"
    heard: list[tuple[str, str, str]] = []
    starter = launcher(settings, f"LOG = {str(log)!r}\n{program}")
    with gevent.Timeout(20):
        assert starter.launch(order(), lambda *story: heard.append(story)).wait() == 0
    assert heard == [("a", "b", "end")]
    assert starter.last_lines("worker-1", 1) == []


def test_a_program_that_is_missing_is_told_before_and_at_the_start(settings: Settings) -> None:
    pool = Pool(worker_command="/nowhere/llm-worker")
    starter = ChildWorkerLauncher(
        settings.model_copy(update={"pool": pool}), host="127.0.0.1", callback_url="http://x", environ={}
    )
    with pytest.raises(WorkerStartFailed, match="/nowhere/llm-worker"):
        starter.check()
    with pytest.raises(WorkerStartFailed, match="No such file"):
        starter.launch(order(), ignore)
    assert list(settings.run_dir.iterdir()) == []


def test_what_a_worker_leaves_behind_ends_with_it(settings: Settings) -> None:
    program = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(p.pid, file=sys.stderr, flush=True)"
    )
    starter = launcher(settings, program)
    process = starter.launch(order(), ignore)
    with gevent.Timeout(10):
        assert process.wait() == 0
    child = int(starter.last_lines("worker-1", 1)[0])
    wait_until(lambda: not is_alive(child), 5, "the child of the worker gone")


def test_a_killed_worker_has_a_negative_status(settings: Settings) -> None:
    process = launcher(settings, SLEEP).launch(order(), ignore)
    assert process.started == pytest.approx(psutil.Process(process.pid).create_time(), abs=0.01)
    assert process.signal_group(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_the_last_lines_of_a_log(settings: Settings) -> None:
    starter = launcher(settings, SLEEP)
    assert starter.last_lines("worker-1", 5) == []
    settings.log_dir.mkdir()
    starter.log_path("worker-1").write_text("".join(f"line {n}\n\n" for n in range(30)))
    assert starter.last_lines("worker-1", 2) == ["line 28", "line 29"]


def test_a_log_that_has_grown_too_large_is_cut_while_the_worker_goes_on_writing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "ROTATE_BYTES", 1000)
    program = (
        "import sys\nfor line in sys.stdin: pass\nprint('x' * 2000, file=sys.stderr, flush=True)\n" + SLEEP
    )
    starter = launcher(settings, program)
    process = starter.launch(order(), ignore)
    log = starter.log_path("worker-1")
    wait_until(lambda: log.exists() and log.stat().st_size >= 2000, 10, "a large log")
    starter.bound_log("worker-1")
    assert log.stat().st_size == 0
    assert log.with_name("worker-1.log.1").stat().st_size == 2001
    with log.open("a") as more:
        more.write("short\n")
    starter.bound_log("worker-1")
    assert starter.last_lines("worker-1", 5) == ["short"]
    starter.bound_log("worker-unknown")
    process.signal_group(signal.SIGKILL)
    process.wait()


def test_only_the_latest_logs_of_workers_are_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "KEPT_LOGS", 3)
    settings.log_dir.mkdir()
    (settings.log_dir / "rbee-hive.log").write_text("kept")
    for number in range(5):
        path = settings.log_dir / f"worker-old{number}.log"
        path.write_text("x")
        os.utime(path, (1000 + number, 1000 + number))
    launcher(settings, "").launch(order("worker-new"), ignore).wait()
    assert sorted(path.name for path in settings.log_dir.iterdir()) == [
        "rbee-hive.log",
        "worker-new.log",
        "worker-old3.log",
        "worker-old4.log",
    ]
