"""Asking a service directly, and the form of what it answers."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from behave import then, when
from features.steps.traffic import last_stream
from features.support import observing
from features.support.observing import call
from features.support.sandbox import ROOT
from features.support.tables import cells, check_fields, values
from features.support.workers import Worker
from features.support.world import World

CORRELATION_ID = "6f9619ff-8b86-4d01-b42d-00c04fc964ff"
PAYLOAD = "payload-marker"


def ask(context: Any, url: str) -> None:
    """Send the requests of the table (request, key, body) one after the other; an empty key is none."""
    world: World = context.world
    for request, key, body in cells(context.table):
        method, _, path = request.partition(" ")
        answer = call(
            method,
            url + path,
            raw=world.fill(body).encode(),
            key=world.fill(key) or None,
            headers={"X-Correlation-ID": CORRELATION_ID},
        )
        world.answers.append(answer)


@when("the queen is asked")
def ask_queen(context: Any) -> None:
    ask(context, context.world.fleet.queen.url)


@when('the hive on "{machine:Text}" is asked')
def ask_hive(context: Any, machine: str) -> None:
    ask(context, context.world.fleet.machine(machine).hive_url)


@when(
    'the hive on "{machine:Text}" is asked for a worker "{worker:Text}" of "{model:Text}" '
    "on {backend:w} {device:d}"
)
def ask_for_worker(context: Any, machine: str, worker: str, model: str, backend: str, device: int) -> None:
    world: World = context.world
    subject = world.fleet.machine(machine)
    body = {"model_ref": world.fill(model), "backend": backend, "device": device}
    answer = call("POST", f"{subject.hive_url}/v1/workers/spawn", body)
    assert answer.status == 200, answer.body
    world.answers.append(answer)
    world.workers[worker] = Worker(subject, answer.json())


@then('the hive on "{machine:Text}" has answered the request for worker "{worker:Text}" with')
def answered_request(context: Any, machine: str, worker: str) -> None:
    world: World = context.world
    (answer,) = world.answers
    assert answer.json() == values(world, context.table), answer.body
    names = [(world.workers[worker].id, "worker-"), (world.workers[worker].key, "key-")]
    for name, prefix in names:
        assert str(uuid.UUID(name.removeprefix(prefix))) == name.removeprefix(prefix), name
    assert world.workers[worker].machine is world.fleet.machine(machine)


@when('worker "{worker:Text}" is asked')
def ask_worker(context: Any, worker: str) -> None:
    ask(context, context.world.workers[worker].url)


@then("the answers are")
def answers_are(context: Any) -> None:
    seen = [[str(answer.status), answer.json()["error"]["code"]] for answer in context.world.answers]
    assert seen == cells(context.table), seen


@then('each answer has the header "{header:Text}"')
def answers_have_header(context: Any, header: str) -> None:
    name, _, value = header.partition(": ")
    assert context.world.answers
    assert {answer.headers.get(name) for answer in context.world.answers} == {value}


@then('the hive on "{machine:Text}" answers "GET /v1/health" without a key')
def answers_without_key(context: Any, machine: str) -> None:
    answer = call("GET", f"{context.world.fleet.machine(machine).hive_url}/v1/health", key=None)
    assert (answer.status, answer.json()["status"]) == (200, "alive"), answer


@when("the cancellation of the task is sent to the queen again")
def cancel_again(context: Any) -> None:
    world: World = context.world
    request_id = last_stream(world).headers["x-request-id"]
    world.answers.append(call("DELETE", f"{world.fleet.queen.url}/v2/tasks/{request_id}"))


@then("the queen has answered the cancellation of the task with {status:d} once more")
def cancelled_again(context: Any, status: int) -> None:
    world: World = context.world
    request_id = last_stream(world).headers["x-request-id"]
    lines = observing.requests_logged(world.fleet.queen_log, f"DELETE /v2/tasks/{request_id}")
    assert [answer.status for answer in world.answers] == [status], world.answers
    assert [line["status"] for line in lines] == [status, status], lines


@then("each answer has the form of a documented error")
def answers_have_form(context: Any) -> None:
    assert context.world.answers
    for answer in context.world.answers:
        assert list(answer.json()) == ["error"], answer.body
        error = answer.json()["error"]
        check_form(context, error, answer.body.decode())
        assert documented_status(error["code"]) == answer.status, error
        assert answer.headers["X-Correlation-ID"] == CORRELATION_ID, answer.headers


@then("the error in the stream has the form of a documented error")
def stream_error_form(context: Any) -> None:
    (answer,) = context.world.answers
    check_form(context, answer.events[-2][1]["error"], answer.body.decode())


@then("the answer is a stream that ends with the error {code:w} and then [DONE]")
def stream_ends(context: Any, code: str) -> None:
    (answer,) = context.world.answers
    assert (answer.status, answer.headers["X-Correlation-ID"]) == (200, CORRELATION_ID), answer
    assert answer.headers["Content-Type"].startswith("text/event-stream"), answer.headers
    (_, last), (_, marker) = answer.events[-2:]
    assert (list(last), last["error"]["code"], marker) == (["error"], code, "[DONE]"), answer.events


@then("the details of the answer are")
def details_are(context: Any) -> None:
    (answer,) = context.world.answers
    check_fields(answer.json()["error"]["details"], values(context.world, context.table))


@then("the body of the answer is")
def body_is(context: Any) -> None:
    (answer,) = context.world.answers
    assert answer.json() == json.loads(context.text), answer.body


def check_form(context: Any, error: dict[str, Any], text: str) -> None:
    """One error object: the documented keys with their types, and nothing that must not leave a service."""
    assert documented_status(error["code"]) is not None, error
    assert error["message"], error
    assert isinstance(error["message"], str), error
    assert isinstance(error["details"], dict), error
    assert isinstance(error.get("suggestion", ""), str), error
    for secret in (PAYLOAD, "Traceback", 'File "', str(context.folder), str(ROOT)):
        assert secret not in text, f"{secret!r} is in {text}"


def documented_status(code: str) -> int | None:
    """The HTTP status that the table of docs/errors.md gives a code."""
    table = (ROOT / "docs" / "errors.md").read_text()
    match = re.search(rf"^\| `{code}` \| (\d+)", table, re.MULTILINE)
    return int(match.group(1)) if match else None
