"""Given and When steps: what runs on which machine, the settings, signals and time."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from behave import given, then, when
from features.support import processes
from features.support.commands import wait_until
from features.support.machines import DaemonProcess
from features.support.models import give_embedded_model
from features.support.peers import OtherServer, SilentPort
from features.support.sandbox import API_KEY, stand_in
from features.support.workers import START_S


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


@when('the hive on "{machine:Text}" is killed')
def kill_hive(context: Any, machine: str) -> None:
    hive = context.world.fleet.machine(machine).hive
    context.world.signal_group(hive.pid, signal.SIGKILL)
    hive.command.finish()


@when('the hive on "{machine:Text}" is killed and started anew')
def restart_hive(context: Any, machine: str) -> None:
    kill_hive(context, machine)
    context.world.fleet.start_hive(machine)


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
