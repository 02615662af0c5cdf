"""Then steps on what a hive lists and logs, and on its workers."""

from __future__ import annotations

import threading
from typing import Any

from behave import then
from features.support import observing
from features.support.commands import wait_until
from features.support.machines import START_S, Worker
from features.support.observing import unix_of
from features.support.ports import is_free
from features.support.tables import check_fields, values

SLACK_S = 2.0
"""How much later than due a timer may act on a machine that is busy with other things."""


@then('the hive lists worker "{worker:Text}" with')
def hive_lists(context: Any, worker: str) -> None:
    check_fields(context.world.workers[worker].record, values(context.world, context.table))


@then('the hive comes to list worker "{worker:Text}" with')
def hive_comes_to_list(context: Any, worker: str) -> None:
    wanted = values(context.world, context.table)
    seen = _records_until(context.world.workers[worker], wanted)
    assert seen[-1] is not None, f"never {wanted}; seen: {seen}"
    check_fields(seen[-1], wanted)


def _records_until(worker: Worker, wanted: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Records listed until one has the wanted fields.

    A list waits up to a second for a worker that does not answer, as long as a state may last: several are
    asked for in turns.
    """
    seen: list[dict[str, Any] | None] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            record = worker.record
            if not is_over.is_set():
                seen.append(record)
            if record is None or all(record.get(name) == value for name, value in wanted.items()):
                is_over.set()

    for _ in range(5):
        threading.Thread(target=look, daemon=True).start()
        is_over.wait(0.2)
    is_over.wait(START_S)
    is_over.set()
    return seen


@then('the hive comes to list no worker "{worker:Text}"')
def hive_comes_to_list_none(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.record is None, START_S, f"a list without worker {worker}")
    assert subject.id not in [record["id"] for record in subject.machine.listed()]


@then('the hive on "{machine:Text}" answers "GET /v1/health" with')
def hive_health(context: Any, machine: str) -> None:
    check_fields(context.world.fleet.machine(machine).hive_health(), values(context.world, context.table))


@then('the hive on "{machine:Text}" accepts another worker')
def accepts_another(context: Any, machine: str) -> None:
    subject = context.world.fleet.machine(machine)
    another = subject.spawn(subject.model)
    assert another.await_state("idle")["pid"] not in [w.pid for w in context.world.workers.values()]


@then('worker "{worker:Text}" has been asked "{request:Text}" about once a second')
def asked_every_second(context: Any, worker: str, request: str) -> None:
    times = [unix_of(line["timestamp"]) for line in context.world.workers[worker].requests(request)]
    assert len(times) >= 5, times
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert 0.7 < sum(gaps) / len(gaps) < 1.6, gaps


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


@then('the hive on "{machine:Text}" has logged {count:d} "{event:Text}" for worker "{worker:Text}"')
def hive_has_logged(context: Any, machine: str, count: int, event: str, worker: str) -> None:
    subject = context.world.workers[worker]
    lines = observing.log_lines(context.world.fleet.machine(machine).hive_log, event, worker_id=subject.id)
    assert len(lines) == count, lines


@then('the hive on "{machine:Text}" has logged "{request:Text}" with {status:d}')
def hive_has_logged_request(context: Any, machine: str, request: str, status: int) -> None:
    log = context.world.fleet.machine(machine).hive_log
    seen = observing.requests_logged(log, context.world.fill(request))
    assert [line["status"] for line in seen] == [status], seen


@then('the hive on "{machine:Text}" comes to have ended the stream "{request:Text}"')
def hive_ends_stream(context: Any, machine: str, request: str) -> None:
    log = context.world.fleet.machine(machine).hive_log
    wait_until(lambda: observing.requests_logged(log, request), 10, f"the end of {request}")
    assert [line["status"] for line in observing.requests_logged(log, request)] == [200]


@then('no worker but "{first:Text}" and "{second:Text}" was spawned on "{machine:Text}"')
def only_two_spawned(context: Any, first: str, second: str, machine: str) -> None:
    _only_spawned(context, {first, second}, machine)


@then('no worker but "{worker:Text}" was spawned on "{machine:Text}"')
def only_one_spawned(context: Any, worker: str, machine: str) -> None:
    _only_spawned(context, {worker}, machine)


def _only_spawned(context: Any, names: set[str], machine: str) -> None:
    lines = observing.log_lines(context.world.fleet.machine(machine).hive_log, "worker_spawn")
    spawned = {line["worker_id"] for line in lines}
    assert spawned == {context.world.workers[name].id for name in names}, lines


@then('the answers of worker "{worker:Text}" to "{request:Text}" of the command were {first:d}, then {second:d}')
def answers_of_command(context: Any, worker: str, request: str, first: int, second: int) -> None:
    held = {context.world.holders[worker].correlation_id}
    answers = context.world.workers[worker].requests(request)
    seen = [line["status"] for line in answers if line["correlation_id"] not in held]
    assert seen == [first, second], answers


@then('the only worker on "{machine:Text}" runs with "{arguments:Text}"')
def only_worker_runs_with(context: Any, machine: str, arguments: str) -> None:
    (process,) = context.world.fleet.machine(machine).worker_processes
    assert arguments in " ".join(process.cmdline()), process.cmdline()


@then('the hive on "{machine:Text}" ends with exit code {code:d} within {seconds:d} s')
def hive_ends(context: Any, machine: str, code: int, seconds: int) -> None:
    hive = context.world.fleet.machine(machine).hive
    result = hive.command.finish(seconds)
    assert result.exit_code == code, result


@then(
    'the workers "{first:Text}", "{second:Text}" and "{third:Text}" were asked to end within {limit:d} s of the signal '
    "and {spread:d} s of each other"
)
def asked_together(context: Any, first: str, second: str, third: str, limit: int, spread: int) -> None:
    world = context.world
    requests = [world.workers[name].requests("POST /v1/admin/shutdown") for name in (first, second, third)]
    assert [[line["status"] for line in asked] for asked in requests] == [[202], [202], [202]], requests
    times = [unix_of(asked[0]["timestamp"]) for asked in requests]
    assert max(times) - world.signalled_unix < limit, (times, world.signalled_unix)
    assert max(times) - min(times) < spread, times


@then('the workers "{first:Text}", "{second:Text}" and "{third:Text}" have ended with exit status 0, before their hive')
def ended_before_hive(context: Any, first: str, second: str, third: str) -> None:
    for name in (first, second, third):
        has_ended_with_0(context, name)


@then('worker "{worker:Text}" has ended with exit status 0')
def has_ended_with_0(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    # The hive has ended: what it logged about the worker's end came before.
    assert subject.exit_line is not None, f"its hive has logged no end of {worker}"
    assert (subject.exit_line["exit_status"], subject.is_alive) == (0, False), subject.exit_line


@then('the hive on "{machine:Text}" has logged the progress "{first:Text}", "{second:Text}", "{third:Text}"')
def logged_progress(context: Any, machine: str, first: str, second: str, third: str) -> None:
    lines = observing.log_lines(context.world.fleet.machine(machine).hive_log, "shutdown_progress")
    assert [line["message"].split()[0] for line in lines] == [first, second, third], lines


@then('the ports of the hive on "{machine:Text}" and of the workers "{a:Text}", "{b:Text}" and "{c:Text}" are free')
def ports_are_free(context: Any, machine: str, a: str, b: str, c: str) -> None:
    subject = context.world.fleet.machine(machine)
    ports = [subject.hive_port, *(context.world.workers[name].port for name in (a, b, c))]
    assert [port for port in ports if not is_free(subject.host, port)] == []


@then('the PID journal of "{machine:Text}" is empty')
def journal_is_empty(context: Any, machine: str) -> None:
    journal = context.world.fleet.machine(machine).sandbox.state / "workers.db"
    assert journal.exists(), journal
    assert observing.rows(journal, "worker_pids") == []


@then('the model catalog of "{machine:Text}" is sound and still has the embedded model')
def catalog_is_sound(context: Any, machine: str) -> None:
    subject = context.world.fleet.machine(machine)
    catalog = subject.sandbox.state / "models.db"
    assert observing.integrity(catalog) == "ok"
    files = [row["local_path"] for row in observing.rows(catalog, "models")]
    assert files == [str(subject.model_file)], files


@then('"{first:Text}" and "{second:Text}" of "{machine:Text}" are sound')
def databases_are_sound(context: Any, first: str, second: str, machine: str) -> None:
    state = context.world.fleet.machine(machine).sandbox.state
    assert [observing.integrity(state / name) for name in (first, second)] == ["ok", "ok"]


@then(
    'the hive on "{machine:Text}" has logged the forced kill of worker "{worker:Text}" by {name}, '
    "{seconds:d} s after the signal"
)
def forced_kill(context: Any, machine: str, worker: str, name: str, seconds: int) -> None:
    world = context.world
    subject = world.workers[worker]
    log = world.fleet.machine(machine).hive_log
    (kill,) = observing.log_lines(log, "forced_kill", worker_id=subject.id, signal=name)
    after_s = unix_of(kill["timestamp"]) - world.signalled_unix
    assert seconds - 0.1 <= after_s < seconds + SLACK_S, after_s
    assert (kill["pid"], bool(kill["reason"])) == (subject.pid, True), kill


@then('every line of stdout is a line of the logs of the hive or of worker "{worker:Text}"')
def lines_of_logs(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    known = set(_lines(subject.log)) | set(_lines(subject.machine.hive_log))
    printed = context.world.last.stdout.splitlines()
    assert printed, context.world.last
    assert [line for line in printed if line not in known] == []


@then('stdout has lines of the log of the hive on "{machine:Text}"')
def has_hive_lines(context: Any, machine: str) -> None:
    known = set(_lines(context.world.fleet.machine(machine).hive_log))
    assert known & set(context.world.last.stdout.splitlines()), context.world.last


@then('stdout has lines of the log of worker "{worker:Text}"')
def has_worker_lines(context: Any, worker: str) -> None:
    known = set(_lines(context.world.workers[worker].log))
    assert known & set(context.world.last.stdout.splitlines()), context.world.last


def _lines(file: Any) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.strip()]


