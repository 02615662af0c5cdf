"""Then steps on what a hive lists and logs, and on its workers."""

from __future__ import annotations

import json
import threading
from typing import Any

from behave import then
from features.support import observing
from features.support.commands import wait_until
from features.support.machines import SLACK_S
from features.support.observing import unix_of
from features.support.ports import is_free
from features.support.tables import cells, check_fields, values
from features.support.workers import START_S, Worker


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


@then('the hive on "{machine:Text}" has logged 1 "{first:Text}", 1 "{second:Text}" and 1 "{third:Text}"')
def logged_once(context: Any, machine: str, first: str, second: str, third: str) -> None:
    log = context.world.fleet.machine(machine).hive_log
    counts = {event: len(observing.log_lines(log, event)) for event in (first, second, third)}
    assert counts == {first: 1, second: 1, third: 1}, counts


@then('the hive on "{machine:Text}" has logged "{request:Text}" twice with {status:d}')
def hive_has_logged_twice(context: Any, machine: str, request: str, status: int) -> None:
    log = context.world.fleet.machine(machine).hive_log
    seen = [line["status"] for line in observing.requests_logged(log, request)]
    assert seen == [status, status], seen


@then('the hive on "{machine:Text}" has logged the callback of worker "{worker:Text}" with')
def callback_logged(context: Any, machine: str, worker: str) -> None:
    subject = context.world.workers[worker]
    log = context.world.fleet.machine(machine).hive_log
    lines = observing.log_lines(log, "worker_ready_callback", worker_id=subject.id)
    assert lines, f"no callback of {worker}"
    for line in lines:
        check_fields(line, values(context.world, context.table))


@then('the record of worker "{worker:Text}" has the pid of its process, and its last activity since then')
def record_is_alive(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    log = subject.machine.hive_log
    last = observing.log_lines(log, "worker_ready_callback", worker_id=subject.id)[-1]
    record = subject.record
    assert record["pid"] == subject.process.pid, record
    assert unix_of(record["last_activity"]) >= unix_of(last["timestamp"]) - 0.001, (record, last)


@then('the record of worker "{worker:Text}" does not have its key')
def record_has_no_key(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    assert subject.key not in json.dumps(subject.record)
    assert subject.record["id"] == subject.id


@then(
    'between the request for worker "{worker:Text}" and its being idle '
    'the hive was asked nothing but "{request:Text}"'
)
def asked_nothing_but(context: Any, worker: str, request: str) -> None:
    subject = context.world.workers[worker]
    lines = observing.log_lines(subject.machine.hive_log)
    spawned = next(i for i, line in enumerate(lines) if line.get("path") == "/v1/workers/spawn")
    idle = next(i for i, line in enumerate(lines) if line.get("after") == "idle")
    between = [line for line in lines[spawned + 1 : idle] if line["event"] == "http_request"]
    assert [f"{line['method']} {line['path']}" for line in between] == [request], between


@then('no database of "{machine:Text}" has worker "{worker:Text}", but for its process in the PID journal')
def no_database_has(context: Any, machine: str, worker: str) -> None:
    subject = context.world.workers[worker]
    tables = observing.tables(context.world.fleet.machine(machine).sandbox.state)
    known = {"worker_id", "hive_port", "pid", "pid_started", "port", "started_at_unix"}
    having = {name: found for name, found in tables.items() if subject.id in json.dumps(found)}
    assert list(having) == ["workers.db:worker_pids"], list(tables)
    assert set(having["workers.db:worker_pids"][0]) == known, having
    assert not [name for name, found in tables.items() if subject.url in json.dumps(found)]


@then('the hive on "{machine:Text}" comes to list no worker')
def hive_comes_to_be_empty(context: Any, machine: str) -> None:
    subject = context.world.fleet.machine(machine)
    wait_until(lambda: subject.listed() == [], SLACK_S, f"the hive on {machine} lists no worker")


@then('the hive on "{machine:Text}" lists no worker')
def hive_lists_none(context: Any, machine: str) -> None:
    assert context.world.fleet.machine(machine).listed() == []


@then('the hive on "{machine:Text}" has logged the passed checks')
def checks_passed(context: Any, machine: str) -> None:
    names, *wanted = cells(context.table)
    log = context.world.fleet.machine(machine).hive_log
    lines = observing.log_lines(log, "preflight", passed=True)
    seen = [[str(line.get(name, "")) for name in names] for line in lines]
    assert [row for row in wanted if row not in seen] == [], lines


@then('the hive on "{machine:Text}" comes to have ended the stream "{request:Text}"')
def hive_ends_stream(context: Any, machine: str, request: str) -> None:
    log = context.world.fleet.machine(machine).hive_log
    wait_until(lambda: observing.requests_logged(log, request), 10, f"the end of {request}")
    assert [line["status"] for line in observing.requests_logged(log, request)] == [200]


@then('the hive on "{machine:Text}" ends with exit code {code:d} within {seconds:d} s')
def hive_ends(context: Any, machine: str, code: int, seconds: int) -> None:
    hive = context.world.fleet.machine(machine).hive
    result = hive.command.finish(seconds)
    assert result.exit_code == code, result


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


@then('no worker but {workers:Names} was spawned on "{machine:Text}"')
def only_spawned(context: Any, workers: list[str], machine: str) -> None:
    lines = observing.log_lines(context.world.fleet.machine(machine).hive_log, "worker_spawn")
    spawned = {line["worker_id"] for line in lines}
    assert spawned == {context.world.workers[name].id for name in workers}, lines


@then('the hive on "{machine:Text}" has logged the progress {steps:Names}')
def logged_progress(context: Any, machine: str, steps: list[str]) -> None:
    lines = observing.log_lines(context.world.fleet.machine(machine).hive_log, "shutdown_progress")
    assert [line["message"].split()[0] for line in lines] == steps, lines


@then('the ports of the hive on "{machine:Text}" and of the workers {workers:Names} are free')
def ports_are_free(context: Any, machine: str, workers: list[str]) -> None:
    subject = context.world.fleet.machine(machine)
    ports = [subject.hive_port, *(context.world.workers[name].port for name in workers)]
    assert [port for port in ports if not is_free(subject.host, port)] == []


@then('{names:Names} of "{machine:Text}" are sound')
def databases_are_sound(context: Any, names: list[str], machine: str) -> None:
    state = context.world.fleet.machine(machine).sandbox.state
    assert [observing.integrity(state / name) for name in names] == ["ok"] * len(names)
