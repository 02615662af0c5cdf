"""Given and When steps: what runs on which machine, the settings, signals and time."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from behave import given, then, when
from features.support import observing, processes
from features.support.commands import wait_until
from features.support.holder import Holder
from features.support.machines import START_S, DaemonProcess
from features.support.models import give_embedded_model
from features.support.peers import OtherServer, SilentPort
from features.support.sandbox import API_KEY, stand_in


@given('"{setting:Text}" is {value} on "{name:Text}"')
def setting_is(context: Any, setting: str, value: str, name: str) -> None:
    section, _, key = setting.partition(".")
    context.world.fleet.sandbox(name).configure(section, **{key: json.loads(context.world.fill(value))})


@given("a queen")
def a_queen(context: Any) -> None:
    context.world.fleet.start_queen()


@given("a queen with MOCK_SSH")
def queen_with_mock_ssh(context: Any) -> None:
    context.world.fleet.start_queen(MOCK_SSH="1")


@given("the queen is replaced by one with MOCK_SSH")
def replace_queen_with_mock_ssh(context: Any) -> None:
    queen_has_ended_on_request(context)
    context.world.fleet.start_queen(MOCK_SSH="1")


@given("no queen runs")
def no_queen(context: Any) -> None:
    fleet = context.world.fleet
    assert processes.daemons(fleet.blep.state, "queen-rbee") == []


@given("another web server holds the port of the queen URL")
def port_is_held(context: Any) -> None:
    fleet = context.world.fleet
    fleet.peers.append(OtherServer(fleet.queen_port))


@given('a machine "{name:Text}" that runs an SSH server')
def machine_with_sshd(context: Any, name: str) -> None:
    context.world.fleet.provide_node(name)


@given('the registered machine "{name:Text}"')
def registered_machine(context: Any, name: str) -> None:
    context.world.fleet.register(context.world.fleet.provide_node(name))


@given('the registered machine "{name:Text}", whose hive is recorded')
def recorded_machine(context: Any, name: str) -> None:
    fleet = context.world.fleet
    node = fleet.provide_node(name)
    fleet.record_hive(name)
    fleet.register(node)


@given('the registered machine "{name:Text}", known as "{host:Text}" and port {port:d}')
def registered_as(context: Any, name: str, host: str, port: int) -> None:
    context.world.fleet.register(context.world.fleet.provide_node(name), host, port)


@given('the registered machine "{name:Text}", on whose hive port nobody ever answers')
def silent_machine(context: Any, name: str) -> None:
    fleet = context.world.fleet
    node = fleet.provide_node(name)
    context.world.silent = SilentPort(node.host)
    fleet.peers.append(context.world.silent)
    node.hive_port = context.world.silent.port
    fleet.register(node)


@given('"{name:Text}" runs no hive, and its catalog has no model')
def has_nothing(context: Any, name: str) -> None:
    machine = context.world.fleet.machine(name)
    assert machine.hive_processes == []
    assert not (machine.sandbox.state / "models.db").exists()


@given('"{name:Text}" has the embedded model')
def has_model(context: Any, name: str) -> None:
    give_embedded_model(context.world.fleet.sandbox(name))


@given('a hive on "{name:Text}" that has the embedded model')
def hive_with_model(context: Any, name: str) -> None:
    has_model(context, name)
    context.world.fleet.start_hive(name)


@given('a hive on "{name:Text}" with the key "{key:Text}"')
def hive_with_key(context: Any, name: str, key: str) -> None:
    context.world.fleet.start_hive(name, RBEE_API_KEY=key)


@given('a stand-in hive of version "{version:Text}" on "{name:Text}"')
def stand_in_hive(context: Any, version: str, name: str) -> None:
    fleet = context.world.fleet
    machine = fleet.machine(name)
    script = {"host": machine.hive_host, "port": machine.hive_port, "version": version, "api_key": API_KEY}
    argv = [*stand_in("scripted_hive"), json.dumps(script)]
    fleet.daemons.append(DaemonProcess("scripted-hive", argv, machine.sandbox, {}))


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


@when('the hive on "{machine:Text}" is killed and started anew')
def restart_hive(context: Any, machine: str) -> None:
    fleet = context.world.fleet
    context.world.signal_group(fleet.machine(machine).hive.pid, signal.SIGKILL)
    fleet.machine(machine).hive.command.finish()
    fleet.start_hive(machine)


@when("{seconds:d} seconds pass")
def time_passes(_context: Any, seconds: int) -> None:
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, seconds + 10, "the passing of time")


@when('worker "{worker:Text}" gets {name}')
def signal_worker(context: Any, worker: str, name: str) -> None:
    context.world.signal_group(context.world.workers[worker].pid, signal.Signals[name])


@when('the hive on "{machine:Text}" gets {name}')
def signal_hive(context: Any, machine: str, name: str) -> None:
    context.world.signal(context.world.fleet.machine(machine).hive.pid, signal.Signals[name])


@when("the queen gets {name}")
def signal_queen(context: Any, name: str) -> None:
    context.world.signal(context.world.fleet.queen.pid, signal.Signals[name])


@when("the keeper gets {name}")
def signal_keeper(context: Any, name: str) -> None:
    context.world.signal(context.world.command.pid, signal.Signals[name])


@when("the queen is ended and started anew")
def restart_queen(context: Any) -> None:
    queen_has_ended_on_request(context)
    context.world.fleet.start_queen()


def queen_has_ended_on_request(context: Any) -> None:
    queen = context.world.fleet.queen.command
    queen.ask_to_end()
    queen.finish()


@when('the only worker on "{name:Text}" is called "{worker:Text}"')
def call_worker(context: Any, name: str, worker: str) -> None:
    context.world.workers[worker] = context.world.fleet.machine(name).adopt()


@when("the queen has ended")
def queen_has_ended(context: Any) -> None:
    context.world.fleet.queen.command.finish()


@then("the queen is still the process that was started")
def queen_is_same(context: Any) -> None:
    fleet = context.world.fleet
    running = [process.pid for process in processes.daemons(fleet.blep.state, "queen-rbee")]
    assert running == [fleet.queen.pid], (running, fleet.queen.pid)


@then('the hive on "{name:Text}" is still the process that was started')
def hive_is_same(context: Any, name: str) -> None:
    machine = context.world.fleet.machine(name)
    running = [process.pid for process in machine.hive_processes]
    assert running == [machine.hive.pid], (running, machine.hive.pid)
    assert machine.hive_health()["pid"] == machine.hive.pid


@then('the hive on "{name:Text}" is no child of the queen')
def hive_is_no_child(context: Any, name: str) -> None:
    fleet = context.world.fleet
    (hive,) = fleet.machine(name).hive_processes
    assert not processes.is_below(hive, fleet.queen.pid), hive.parents()


@then('"{name:Text}" runs {hives:d} hive and {workers:d} worker')
def runs(context: Any, name: str, hives: int, workers: int) -> None:
    machine = context.world.fleet.machine(name)
    found = (len(machine.hive_processes), len(machine.worker_processes))
    assert found == (hives, workers), found


@then('"{name:Text}" comes to run 1 hive and 0 workers')
def comes_to_run_no_worker(context: Any, name: str) -> None:
    machine = context.world.fleet.machine(name)
    wait_until(lambda: not machine.worker_processes, START_S, f"no worker on {name}")
    assert len(machine.hive_processes) == 1, machine.hive_processes


@then('"{name:Text}" comes to run {hives:d} hives and {workers:d} workers')
def comes_to_run(context: Any, name: str, hives: int, workers: int) -> None:
    machine = context.world.fleet.machine(name)

    def count() -> bool:
        return (len(machine.hive_processes), len(machine.worker_processes)) == (hives, workers)

    wait_until(count, START_S, f"{hives} hives and {workers} workers on {name}")
    assert machine.listening == [], machine.listening
