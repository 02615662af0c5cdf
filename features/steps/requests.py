"""Then steps on the requests that workers were asked: how often, when, and how each was answered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from behave import then
from features.steps.traffic import last_stream
from features.support.commands import wait_until
from features.support.machines import SLACK_S
from features.support.observing import unix_of
from features.support.streams import StreamReader
from features.support.tables import cells
from features.support.workers import START_S

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


@then('worker "{worker:Text}" finishes its requests')
def finishes(context: Any, worker: str) -> None:
    holder = context.world.holders[worker]
    holder.finish()
    endings = [events[-2:] for events in holder.streams]
    assert endings, "it had no request"
    for done, marker in endings:
        assert (done[1].get("done"), marker[1]) == (True, "[DONE]"), endings


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
    asked = f"DELETE /v1/inference/{request_id}"
    subject = world.workers[worker]
    lines = wait_until(lambda: subject.requests(asked), seconds + SLACK_S, f"worker {worker} asked to cancel")
    assert {line["status"] for line in lines} == {status}, lines
    assert 0 <= unix_of(lines[0]["timestamp"]) - world.signalled_unix < seconds, lines


@then('worker "{worker:Text}" went from busy to idle within {seconds:d} s of the signal')
def went_idle(context: Any, worker: str, seconds: int) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.state_changes("busy to idle"), START_S, f"worker {worker} idle")
    idle_unix = unix_of(subject.state_changes("busy to idle")[0]["timestamp"])
    assert 0 <= idle_unix - context.world.signalled_unix < seconds + SLACK_S, idle_unix


@then('the long request to worker "{worker:Text}" goes on undisturbed')
def long_request_goes_on(context: Any, worker: str) -> None:
    holder = context.world.holders[worker]
    before = len(holder.tokens)
    wait_until(lambda: len(holder.tokens) > before, 10, "another token of the long request")
    assert [data["index"] for data in holder.tokens] == list(range(len(holder.tokens))), holder.tokens
    assert holder.streams == [], holder.streams


@then("the workers {workers:Names} come to be idle, and each answers a request")
def come_to_answer(context: Any, workers: list[str]) -> None:
    for name in workers:
        subject = context.world.workers[name]
        subject.await_state("idle")
        reader = StreamReader("POST", f"{subject.url}/v1/inference", SHORT_REQUEST, subject.key)
        reader.finish()
        assert len(reader.data("token")) > 0, reader.events
        assert len(reader.data("done")) == 1, reader.events


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
