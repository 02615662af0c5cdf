"""Given and When steps on workers: spawned, stuck, kept busy, waited for."""

from __future__ import annotations

from typing import Any

from behave import given, when
from features.support import observing
from features.support.commands import wait_until
from features.support.holder import Holder
from features.support.workers import START_S


@given('an idle worker "{worker:Text}" on "{name:Text}"')
def idle_worker(context: Any, worker: str, name: str) -> None:
    idle_workers(context, [worker], name)


@given('an idle worker "{worker:Text}" on "{name:Text}" with the model "{model:Text}"')
def idle_worker_with_model(context: Any, worker: str, name: str, model: str) -> None:
    idle_workers(context, [worker], name, context.world.fill(model))


@given('the idle workers {workers:Names} on "{name:Text}"')
def idle_workers(context: Any, workers: list[str], name: str, model: str | None = None) -> None:
    """Spawn workers side by side and wait until all are idle; their records at that moment are noted."""
    world = context.world
    machine = world.fleet.machine(name)
    for worker in workers:
        world.workers[worker] = machine.spawn(model or machine.model)
    for worker in workers:
        world.noted[worker] = world.workers[worker].await_state("idle")


@given('workers on "{name:Text}" can be told to get stuck while loading')
def stuck_on_demand(context: Any, name: str) -> None:
    context.world.fleet.machine(name).choose_worker_program()


@given('the next workers on "{name:Text}" get stuck while loading')
def next_get_stuck(context: Any, name: str) -> None:
    context.world.fleet.machine(name).next_worker_is_stuck()


@given('a worker "{worker:Text}" on "{name:Text}" that is stuck while loading')
def stuck_worker(context: Any, worker: str, name: str) -> None:
    world = context.world
    machine = world.fleet.machine(name)
    machine.next_worker_is_stuck()
    world.workers[worker] = machine.spawn(machine.model)
    world.workers[worker].await_http()


@given('worker "{worker:Text}" is kept busy by requests')
def busy_with_requests(context: Any, worker: str) -> None:
    context.world.holders[worker] = Holder(context.world.workers[worker], max_tokens=60)


@given('worker "{worker:Text}" is kept busy by one long request')
def busy_with_one_request(context: Any, worker: str) -> None:
    context.world.holders[worker] = Holder(context.world.workers[worker], max_tokens=1900)


@when('the long request to worker "{worker:Text}" is cancelled')
def cancel_long_request(context: Any, worker: str) -> None:
    context.world.holders[worker].cancel()


@when('worker "{worker:Text}" is idle again')
def is_idle_again(context: Any, worker: str) -> None:
    context.world.noted[worker] = context.world.workers[worker].await_state("idle")


@when('worker "{worker:Text}" has answered "{request:Text}" with {status:d}')
def worker_has_answered(context: Any, worker: str, request: str, status: int) -> None:
    log = context.world.workers[worker].log

    def has_answered() -> bool:
        return any(line["status"] == status for line in observing.requests_logged(log, request))

    wait_until(has_answered, START_S, f"{request} {status} at worker {worker}")


@when('the hive has logged a "{event:Text}" for worker "{worker:Text}"')
def hive_has_logged(context: Any, event: str, worker: str) -> None:
    subject = context.world.workers[worker]

    def is_logged() -> bool:
        return bool(observing.log_lines(subject.machine.hive_log, event, worker_id=subject.id))

    wait_until(is_logged, START_S, f"{event} for worker {worker}")


@when('the hive has logged that worker "{worker:Text}" went from {before:w} to {after:w}')
def hive_has_logged_change(context: Any, worker: str, before: str, after: str) -> None:
    subject = context.world.workers[worker]
    change = {"worker_id": subject.id, "before": before, "after": after}

    def is_logged() -> bool:
        return bool(observing.log_lines(subject.machine.hive_log, "worker_state", **change))

    wait_until(is_logged, START_S, f"worker {worker} from {before} to {after}")


@when('the only worker on "{name:Text}" is called "{worker:Text}"')
def call_worker(context: Any, name: str, worker: str) -> None:
    context.world.workers[worker] = context.world.fleet.machine(name).adopt()
