"""Then steps on the HTTP traffic that recorders saw, and on connections to silent ports."""

from __future__ import annotations

from typing import Any

from behave import then
from features.support import observing
from features.support.observing import unix_of
from features.support.recorder import Exchange
from features.support.tables import cells, check_fields, values
from features.support.world import World


def asked_queen(world: World, request: str) -> list[Exchange]:
    """What the keeper asked the queen under this name, e.g. ``POST /v2/tasks``."""
    assert world.fleet.recorder is not None, "no queen was started"
    return [exchange for exchange in world.fleet.recorder.exchanges if exchange.name == request]


def asked_hive(world: World, machine: str, request: str) -> list[Exchange]:
    """What the queen asked the hive of a machine under this name."""
    recorder = world.fleet.machine(machine).recorder
    assert recorder is not None, f"the hive of {machine} is not recorded"
    return [exchange for exchange in recorder.exchanges if exchange.name == request]


def last_stream(world: World) -> Exchange:
    """The last task, as the keeper received it."""
    tasks = asked_queen(world, "POST /v2/tasks")
    assert tasks, "there was no task"
    return tasks[-1]


def stream_text(world: World) -> str:
    """The text of the last task's stream, as the keeper received it."""
    tokens = [data["token"] for _, data in last_stream(world).events if "token" in data]
    assert tokens, "the stream had no tokens"
    return "".join(tokens)


@then('the queen has answered "{request:Text}" with {status:d}')
def queen_answered(context: Any, request: str, status: int) -> None:
    seen = [exchange.status for exchange in asked_queen(context.world, request)]
    assert seen == [status], seen


@then('the queen has answered "{request:Text}" with {status:d} {code:w}')
def queen_answered_error(context: Any, request: str, status: int, code: str) -> None:
    last = asked_queen(context.world, request)[-1:]
    seen = [(e.status, e.error_code, e.headers["content-type"].split(";")[0]) for e in last]
    assert seen == [(status, code, "application/json")], seen


@then('the details of the error of "{request:Text}" are')
def error_details(context: Any, request: str) -> None:
    answer = asked_queen(context.world, request)[-1]
    check_fields(answer.json()["error"]["details"], values(context.world, context.table))


@then('the queen was asked "{request:Text}" once with exactly')
def queen_was_asked(context: Any, request: str) -> None:
    sent = [exchange.sent for exchange in asked_queen(context.world, request)]
    assert sent == [values(context.world, context.table)], sent


@then('the queen was not asked "{request:Text}"')
def queen_was_not_asked(context: Any, request: str) -> None:
    assert asked_queen(context.world, request) == []


@then("the queen was asked nothing")
def queen_was_asked_nothing(context: Any) -> None:
    assert context.world.fleet.recorder.exchanges == []


@then('the keeper sent "{request:Text}" with the header "{header:Text}"')
def keeper_sent_header(context: Any, request: str, header: str) -> None:
    name, _, value = header.partition(": ")
    seen = [exchange.request_headers.get(name.lower()) for exchange in asked_queen(context.world, request)]
    assert seen == [value], seen


@then('the stream of "{request:Text}" ends with the error {code:w} and')
def stream_ends_with_error(context: Any, request: str, code: str) -> None:
    (exchange,) = asked_queen(context.world, request)
    assert exchange.headers["content-type"].startswith("text/event-stream"), exchange.headers
    (_, last), marker = exchange.events[-2:]
    assert (last["error"]["code"], marker[1]) == (code, "[DONE]"), exchange.events
    check_fields(last["error"]["details"], values(context.world, context.table))


@then('the error code in the stream of "{request:Text}" is {code:w}')
def stream_error_code(context: Any, request: str, code: str) -> None:
    (exchange,) = asked_queen(context.world, request)
    (_, last), marker = exchange.events[-2:]
    assert (last["error"]["code"], marker[1]) == (code, "[DONE]"), exchange.events


@then('the stream of "{request:Text}" has the event "{name:Text}" with')
def stream_has_event(context: Any, request: str, name: str) -> None:
    (exchange,) = asked_queen(context.world, request)
    (found,) = [data for event, data in exchange.events if event == name]
    check_fields(found, values(context.world, context.table))


@then('the event "started" of the last task names another worker than "{worker:Text}"')
def started_names_another(context: Any, worker: str) -> None:
    (started,) = [data for event, data in last_stream(context.world).events if event == "started"]
    assert started["worker_id"].startswith("worker-"), started
    assert started["worker_id"] != context.world.workers[worker].id, started


@then('the event "started" of the last task names worker "{worker:Text}"')
def started_names(context: Any, worker: str) -> None:
    (started,) = [data for event, data in last_stream(context.world).events if event == "started"]
    assert started["worker_id"] == context.world.workers[worker].id, started


@then(
    'the request_id of the event "started" is that of the one request '
    'worker "{worker:Text}" was asked "{request:Text}"'
)
def request_id_is(context: Any, worker: str, request: str) -> None:
    (started,) = [data for event, data in last_stream(context.world).events if event == "started"]
    seen = [line["request_id"] for line in context.world.workers[worker].requests(request)]
    assert seen == [started["request_id"]], (seen, started)


@then('for the last task the hive on "{machine:Text}" was asked for no download and no new worker')
def hive_asked_for_nothing(context: Any, machine: str) -> None:
    world = context.world
    recorder = world.fleet.machine(machine).recorder
    asked = [e for e in recorder.exchanges if e.asked_unix >= last_stream(world).asked_unix]
    assert [e for e in asked if e.name == "POST /v1/models/download"] == []
    spawns = [e.sent for e in asked if e.name == "POST /v1/workers/spawn"]
    assert [body for body in spawns if not body.get("worker_id")] == []
    assert recorder.exchanges, "the hive was asked nothing at all"


@then("stdout is the text of the stream")
def stdout_is_stream(context: Any) -> None:
    assert context.world.last.stdout == stream_text(context.world) + "\n", context.world.last


@then("stdout is the text of the stream so far")
def stdout_is_stream_so_far(context: Any) -> None:
    assert context.world.last.stdout == stream_text(context.world), context.world.last


@then('the "{field:Text}" of that JSON is the text of the stream')
def field_is_stream(context: Any, field: str) -> None:
    assert context.world.last.json()[field] == stream_text(context.world), context.world.last


@then('stdout is the body of the answer to "{request:Text}"')
def stdout_is_body(context: Any, request: str) -> None:
    answer = asked_queen(context.world, request)[-1]
    assert context.world.last.json() == answer.json(), context.world.last


@then('the hive on "{machine:Text}" has answered "{request:Text}" with the body')
def hive_answered_body(context: Any, machine: str, request: str) -> None:
    bodies = [exchange.body.decode().strip() for exchange in asked_hive(context.world, machine, request)]
    assert bodies[:1] == [context.text], bodies


@then('the hive on "{machine:Text}" has answered each "{request:Text}" with {status:d} and')
def hive_answered_each(context: Any, machine: str, request: str, status: int) -> None:
    answers = asked_hive(context.world, machine, request)
    assert len(answers) >= 2, answers
    for answer in answers:
        assert answer.status == status, answer
        check_fields(answer.json(), values(context.world, context.table))


@then('the hive on "{machine:Text}" has answered "{request:Text}" with {status:d} and')
def hive_answered(context: Any, machine: str, request: str, status: int) -> None:
    first = asked_hive(context.world, machine, request)[:1]
    assert [answer.status for answer in first] == [status], first
    check_fields(first[0].json(), values(context.world, context.table))


@then('the hive on "{machine:Text}" has answered "{request:Text}" with {status:d} {code:w} and')
def hive_answered_error(context: Any, machine: str, request: str, status: int, code: str) -> None:
    first = asked_hive(context.world, machine, request)[:1]
    assert [(answer.status, answer.error_code) for answer in first] == [(status, code)], first
    check_fields(first[0].json()["error"]["details"], values(context.world, context.table))


@then(
    'the hive on "{machine:Text}" has refused "{request:Text}" with {status:d} {code:w} and "{header:Text}"'
)
def hive_refused(context: Any, machine: str, request: str, status: int, code: str, header: str) -> None:
    name, _, value = header.partition(": ")
    seen = asked_hive(context.world, machine, request)
    answers = {(answer.status, answer.error_code, answer.headers.get(name.lower())) for answer in seen}
    assert answers == {(status, code, value)}, seen


@then(
    "within {seconds:d} s of the signal the queen has answered the cancellation of the task with {status:d}"
)
def queen_cancelled(context: Any, seconds: int, status: int) -> None:
    world = context.world
    request_id = last_stream(world).headers["x-request-id"]
    (line,) = observing.requests_logged(world.fleet.queen_log, f"DELETE /v2/tasks/{request_id}")
    (asked,) = asked_queen(world, f"DELETE /v2/tasks/{request_id}")
    assert (line["status"], asked.status) == (status, status), line
    assert 0 <= unix_of(line["timestamp"]) - world.signalled_unix < seconds, line


@then('the hive on "{machine:Text}" was asked in a row')
def hive_was_asked_in_a_row(context: Any, machine: str) -> None:
    wanted = [row[0] for row in cells(context.table)]
    asked = [exchange.name for exchange in context.world.fleet.machine(machine).recorder.exchanges]
    starts = [asked[first : first + len(wanted)] for first in range(len(asked))]
    assert wanted in starts, asked


@then('the hive on "{machine:Text}" was not asked "{request:Text}"')
def hive_was_not_asked(context: Any, machine: str, request: str) -> None:
    assert asked_hive(context.world, machine, "GET /v1/health"), "the hive was asked nothing at all"
    assert asked_hive(context.world, machine, request) == []


@then("the silent port has counted {count:d} connections, each given up after {seconds:d} s")
def silent_port_counted(context: Any, count: int, seconds: int) -> None:
    durations = context.world.silent.durations_s
    assert len(durations) == count, durations
    assert all(seconds - 0.1 <= duration < seconds + 3 for duration in durations), durations


@then("the second and third came {first:d} ms and {second:d} ms after the one before")
def silent_port_gaps(context: Any, first: int, second: int) -> None:
    gaps_ms = [gap * 1000 for gap in context.world.silent.gaps_s]
    # Our own look at the clock may be late by some milliseconds at either end.
    assert len(gaps_ms) == 2, gaps_ms
    assert first - 20 <= gaps_ms[0] < first + 1500, gaps_ms
    assert second - 20 <= gaps_ms[1] < second + 1500, gaps_ms
