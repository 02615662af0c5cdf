"""Then steps on workers: what they were asked, how they ended, their processes and ports."""

from __future__ import annotations

import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

from behave import then
from features.steps.traffic import last_stream
from features.support import observing, processes
from features.support.commands import wait_until
from features.support.machines import SLACK_S, START_S
from features.support.observing import unix_of
from features.support.ports import is_free
from features.support.streams import StreamReader
from features.support.tables import cells

SHORT_REQUEST = {"prompt": "hello", "max_tokens": 3, "temperature": 0}


@then('worker "{worker:Text}" has been asked "{request:Text}" about once a second')
def asked_every_second(context: Any, worker: str, request: str) -> None:
    times = [unix_of(line["timestamp"]) for line in context.world.workers[worker].requests(request)]
    assert len(times) >= 5, times
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 0.7 < sum(gaps) / len(gaps) < 1.6, gaps


@then('worker "{worker:Text}" has been asked "{request:Text}" {count:d} times')
@then('worker "{worker:Text}" has been asked "{request:Text}" {count:d} time')
def asked_times(context: Any, worker: str, request: str, count: int) -> None:
    seen = context.world.workers[worker].requests(request)
    assert len(seen) == count, seen


@then('worker "{worker:Text}" has not been asked "{request:Text}"')
def not_asked(context: Any, worker: str, request: str) -> None:
    seen = context.world.workers[worker].requests(request)
    assert seen == [], seen


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


@then('worker "{worker:Text}" finishes its requests')
def finishes(context: Any, worker: str) -> None:
    holder = context.world.holders[worker]
    holder.finish()
    endings = [events[-2:] for events in holder.streams]
    assert endings, "it had no request"
    for done, marker in endings:
        assert (done[1].get("done"), marker[1]) == (True, "[DONE]"), endings


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


@then('the answers of worker "{worker:Text}" to "{request:Text}" of the command were')
def answers_of_command(context: Any, worker: str, request: str) -> None:
    held = {context.world.holders[worker].correlation_id}
    answers = context.world.workers[worker].requests(request)
    own = [line for line in answers if line["correlation_id"] not in held]
    seen = [[str(line["status"]), line.get("error_code", "")] for line in own]
    assert seen == cells(context.table), answers


@then(
    'the command was refused {count:d} times by worker "{worker:Text}", '
    "{first:d} s, {second:d} s and {third:d} s apart"
)
def refused_apart(context: Any, count: int, worker: str, first: int, second: int, third: int) -> None:
    task = last_stream(context.world).request_headers["x-correlation-id"]
    answers = context.world.workers[worker].requests("POST /v1/inference")
    own = [line for line in answers if line["correlation_id"] == task]
    assert [line["status"] for line in own] == [503] * count, answers
    times = [unix_of(line["timestamp"]) for line in own]
    for (earlier, later), due in zip(pairwise(times), (first, second, third), strict=True):
        assert abs(later - earlier - due) <= 0.5, times


@then(
    "within {seconds:d} s of the signal worker "
    '"{worker:Text}" has answered the cancellation of the task with {status:d}'
)
def worker_cancelled(context: Any, seconds: int, worker: str, status: int) -> None:
    world = context.world
    request_id = last_stream(world).headers["x-request-id"]
    lines = world.workers[worker].requests(f"DELETE /v1/inference/{request_id}")
    assert {line["status"] for line in lines} == {status}, lines
    assert 0 <= unix_of(lines[0]["timestamp"]) - world.signalled_unix < seconds, lines


@then('worker "{worker:Text}" went from busy to idle within {seconds:d} s of the signal')
def went_idle(context: Any, worker: str, seconds: int) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.state_changes("busy to idle"), START_S, f"worker {worker} idle")
    idle_unix = unix_of(subject.state_changes("busy to idle")[0]["timestamp"])
    assert 0 <= idle_unix - context.world.signalled_unix < seconds + SLACK_S, idle_unix


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


@then('the long request to worker "{worker:Text}" goes on undisturbed')
def long_request_goes_on(context: Any, worker: str) -> None:
    holder = context.world.holders[worker]
    before = len(holder.tokens)
    wait_until(lambda: len(holder.tokens) > before, 10, "another token of the long request")
    assert [data["index"] for data in holder.tokens] == list(range(len(holder.tokens))), holder.tokens
    assert holder.streams == [], holder.streams


@then('the only worker on "{machine:Text}" runs with "{arguments:Text}"')
def only_worker_runs_with(context: Any, machine: str, arguments: str) -> None:
    (process,) = context.world.fleet.machine(machine).worker_processes
    assert context.world.fill(arguments) in " ".join(process.cmdline()), process.cmdline()


@then("the workers {workers:Names} come to be idle, and each answers a request")
def come_to_answer(context: Any, workers: list[str]) -> None:
    for name in workers:
        subject = context.world.workers[name]
        subject.await_state("idle")
        reader = StreamReader("POST", f"{subject.url}/v1/inference", SHORT_REQUEST, subject.key)
        reader.finish()
        assert len(reader.data("token")) > 0, reader.events
        assert len(reader.data("done")) == 1, reader.events


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


@then('worker "{worker:Text}" was asked {requests:Names} for the task while it was loading')
def asked_while_loading(context: Any, worker: str, requests: list[str]) -> None:
    subject = context.world.workers[worker]
    (idle,) = subject.state_changes("loading to idle")
    task = last_stream(context.world).headers["x-correlation-id"]
    for request in requests:
        asked = [line for line in subject.requests(request) if line["correlation_id"] == task]
        # A line is written when the answer is complete; that of a stream follows the end of loading.
        began = [unix_of(line["timestamp"]) - line["duration_ms"] / 1000 for line in asked]
        assert min(began) < unix_of(idle["timestamp"]), (request, asked, idle)


@then('stdout began while worker "{worker:Text}" was still busy')
def began_while_busy(context: Any, worker: str) -> None:
    idle = context.world.workers[worker].state_changes("busy to idle")[-1]
    began_unix = context.world.last.first_text_unix
    assert began_unix is not None, context.world.last
    assert began_unix < unix_of(idle["timestamp"]), (began_unix, idle)


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


@then(
    "the workers {workers:Names} were asked to end within {limit:d} s of the signal "
    "and {spread:d} s of each other"
)
def asked_together(context: Any, workers: list[str], limit: int, spread: int) -> None:
    world = context.world
    requests = [world.workers[name].requests("POST /v1/admin/shutdown") for name in workers]
    assert [[line["status"] for line in asked] for asked in requests] == [[202]] * len(workers), requests
    times = [unix_of(asked[0]["timestamp"]) for asked in requests]
    assert max(times) - world.signalled_unix < limit, (times, world.signalled_unix)
    assert max(times) - min(times) < spread, times
