"""Then steps on workers: what they were asked, how they ended, their processes and ports."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from behave import then
from features.support import observing, processes
from features.support.commands import wait_until
from features.support.machines import SLACK_S
from features.support.observing import unix_of
from features.support.ports import is_free
from features.support.tables import cells
from features.support.workers import START_S

SHORT_REQUEST = {"prompt": "hello", "max_tokens": 3, "temperature": 0}


@then('the {field} of worker "{worker:Text}" has moved')
def field_has_moved(context: Any, field: str, worker: str) -> None:
    before, now = context.world.noted[worker][field], context.world.workers[worker].record[field]
    assert unix_of(now) > unix_of(before), (before, now)


@then('the {field} of worker "{worker:Text}" comes to have moved')
def field_comes_to_move(context: Any, field: str, worker: str) -> None:
    subject = context.world.workers[worker]
    # While a request is under way there is none.
    wait_until(lambda: (subject.record or {}).get(field), 5, f"the {field} of worker {worker}")
    field_has_moved(context, field, worker)


@then('the {field} of worker "{worker:Text}" has not moved')
def field_has_not_moved(context: Any, field: str, worker: str) -> None:
    before, now = context.world.noted[worker][field], context.world.workers[worker].record[field]
    assert unix_of(now) == unix_of(before), (before, now)


@then('worker "{worker:Text}" is asked to end {seconds:d} s after its idle_since')
def asked_to_end(context: Any, worker: str, seconds: int) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.requests("POST /v1/admin/shutdown"), START_S, f"the end of worker {worker}")
    (request,) = subject.requests("POST /v1/admin/shutdown")
    after_s = unix_of(request["timestamp"]) - unix_of(context.world.noted[worker]["idle_since"])
    assert seconds <= after_s < seconds + 1 + SLACK_S, after_s


@then('worker "{worker:Text}" was probed while it was idle')
def probed_while_idle(context: Any, worker: str) -> None:
    since = unix_of(context.world.noted[worker]["idle_since"])
    probes = context.world.workers[worker].requests("GET /v1/health")
    assert [line for line in probes if unix_of(line["timestamp"]) > since], probes


@then('worker "{worker:Text}" comes to its end with exit status {status:d}')
def ends_with(context: Any, worker: str, status: int) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.exit_line, START_S, f"the end of worker {worker}")
    assert (subject.exit_line["exit_status"], subject.is_alive) == (status, False), subject.exit_line


@then('the process of worker "{worker:Text}" comes to its end')
def process_ends(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: not subject.is_alive, START_S, f"the end of worker {worker}'s process")
    assert subject.exit_line is not None, "its hive has not noticed"


@then('the process of worker "{worker:Text}" has ended')
def process_has_ended(context: Any, worker: str) -> None:
    assert not context.world.workers[worker].is_alive


@then('the process of worker "{worker:Text}" lives')
def process_lives(context: Any, worker: str) -> None:
    assert context.world.workers[worker].is_alive


@then('the port of worker "{worker:Text}" is free')
def port_is_free(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    assert is_free(subject.machine.host, subject.port)


@then('worker "{worker:Text}" has unloaded its model')
def has_unloaded(context: Any, worker: str) -> None:
    log = context.world.workers[worker].log
    wait_until(lambda: observing.log_lines(log, "model_unloaded"), START_S, "the model unloaded")
    assert len(observing.log_lines(log, "model_unloaded")) == 1


@then(
    "within {seconds:d} s of the signal the hive has logged the crash of worker "
    '"{worker:Text}" with exit status {status:d}'
)
def crash_logged(context: Any, seconds: int, worker: str, status: int) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.exit_line, START_S, f"the end of worker {worker}")
    line = subject.exit_line
    assert (line["event"], line["exit_status"]) == ("worker_crashed", status), line
    assert unix_of(line["timestamp"]) - context.world.signalled_unix < seconds + SLACK_S, line


@then(
    'worker "{worker:Text}" unloaded its model within {unload:d} s of being asked to end, '
    "and was gone within {gone:d} s"
)
def ended_in_time(context: Any, worker: str, unload: int, gone: int) -> None:
    subject = context.world.workers[worker]
    (asked,) = subject.requests("POST /v1/admin/shutdown")
    (unloaded,) = observing.log_lines(subject.log, "model_unloaded")
    asked_unix = unix_of(asked["timestamp"])
    assert unix_of(unloaded["timestamp"]) - asked_unix < unload + SLACK_S, (asked, unloaded)
    assert unix_of(subject.exit_line["timestamp"]) - asked_unix < gone + SLACK_S, subject.exit_line


@then('no process of worker "{worker:Text}" is left on "{machine:Text}"')
def no_process_left(context: Any, worker: str, machine: str) -> None:
    subject = context.world.workers[worker]
    state = context.world.fleet.machine(machine).sandbox.state
    alive = [processes.arguments(process) for process in processes.processes_of(state)]
    assert alive, "not even the hive is left"
    assert [words for words in alive if subject.id in words] == []


@then('the only worker on "{machine:Text}" runs with "{arguments:Text}"')
def only_worker_runs_with(context: Any, machine: str, arguments: str) -> None:
    (process,) = context.world.fleet.machine(machine).worker_processes
    assert context.world.fill(arguments) in " ".join(process.cmdline()), process.cmdline()


@then('the memory and the folder of worker "{larger:Text}" are larger than those of worker "{smaller:Text}"')
def are_larger(context: Any, larger: str, smaller: str) -> None:
    health = [context.world.workers[name].health() for name in (larger, smaller)]
    assert health[0]["vram_bytes"] > health[1]["vram_bytes"] > 0, health
    sizes = []
    for name in (larger, smaller):
        words = processes.arguments(context.world.workers[name].process)
        folder = Path(words[words.index("--model") + 1])
        sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
    assert sizes[0] > sizes[1] > 0, sizes


@then('a process of worker "{worker:Text}" comes to run with "{arguments:Text}"')
def comes_to_run_with(context: Any, worker: str, arguments: str) -> None:
    subject = context.world.workers[worker]
    process = wait_until(lambda: subject.process, START_S, f"a process of worker {worker}")
    words = processes.arguments(process)
    assert processes.is_program(process, "llm-worker-rbee"), words
    assert arguments in " ".join(words), words


@then('the process of worker "{worker:Text}" has the arguments')
def has_arguments(context: Any, worker: str) -> None:
    words = processes.arguments(context.world.workers[worker].process)
    wanted = [(name, context.world.fill(value)) for name, value in cells(context.table)]
    assert [(name, words[words.index(name) + 1]) for name, _ in wanted] == wanted, words


@then('"{file:Text}" has mode 0600 and holds the key of worker "{worker:Text}", which is in no argument')
def key_file_holds(context: Any, file: str, worker: str) -> None:
    subject, path = context.world.workers[worker], Path(context.world.fill(file))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, oct(path.stat().st_mode)
    assert path.read_text().strip() == subject.key
    assert subject.key not in " ".join(processes.arguments(subject.process))


@then(
    'worker "{worker:Text}" was listening before its callback, '
    "and its callback came before its model was loaded"
)
def started_in_order(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    (up,) = observing.log_lines(subject.log, "narration", action="server_start")
    (called,) = observing.log_lines(subject.machine.hive_log, "worker_ready_callback", worker_id=subject.id)
    (*_, loaded) = observing.log_lines(subject.log, "narration", action="model_load")
    assert loaded["message"].startswith("Model loaded in"), loaded
    times = [unix_of(line["timestamp"]) for line in (up, called, loaded)]
    assert times == sorted(times), times


@then('worker "{worker:Text}" is on the first worker port of "{machine:Text}"')
def is_on_first_port(context: Any, worker: str, machine: str) -> None:
    settings = context.world.fleet.machine(machine).sandbox.settings
    assert context.world.workers[worker].port == settings["pool"]["worker_port_min"]


@then('worker "{worker:Text}" has ended with exit status 0')
def has_ended_with_0(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    # The hive has ended: what it logged about the worker's end came before.
    assert subject.exit_line is not None, f"its hive has logged no end of {worker}"
    assert (subject.exit_line["exit_status"], subject.is_alive) == (0, False), subject.exit_line


@then("the workers {workers:Names} have ended with exit status 0, before their hive")
def ended_before_hive(context: Any, workers: list[str]) -> None:
    assert workers
    for name in workers:
        has_ended_with_0(context, name)
