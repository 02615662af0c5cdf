"""Running the keeper, and what it printed and how it ended."""

from __future__ import annotations

from typing import Any

from behave import given, then, when
from features.support import processes
from features.support.commands import wait_until
from features.support.ports import is_free
from features.support.workers import START_S


@when('blep runs "{line:Text}"')
def blep_runs(context: Any, line: str) -> None:
    world = context.world
    world.results.append(world.fleet.keeper(*world.words(line)))


@when('the variable {name:w} is "{value:Text}"')
def variable_is(context: Any, name: str, value: str) -> None:
    context.world.fleet.variables[name] = context.world.fill(value)


@when("the variable {name:w} is not set")
def variable_is_not_set(context: Any, name: str) -> None:
    context.world.fleet.variables[name] = None


@when('blep runs {count:d} times at once "{line:Text}"')
def blep_runs_at_once(context: Any, count: int, line: str) -> None:
    world = context.world
    commands = [world.fleet.start_keeper(*world.words(line)) for _ in range(count)]
    world.results += [command.finish() for command in commands]


@then("each of the {count:d} commands ended with exit code 0 and a text")
def each_ended_well(context: Any, count: int) -> None:
    results = context.world.results[-count:]
    seen = [(result.exit_code, bool(result.stdout.strip())) for result in results]
    assert seen == [(0, True)] * count, results


@when('blep runs "{line:Text}" into a file')
def blep_runs_into_file(context: Any, line: str) -> None:
    world = context.world
    command = world.fleet.start_keeper(*world.words(line), stdout_file=context.folder / "output.txt")
    world.results.append(command.finish())


@when('blep starts "{line:Text}"')
def blep_starts(context: Any, line: str) -> None:
    world = context.world
    world.running = world.fleet.start_keeper(*world.words(line))


@when("the command ends")
def command_ends(context: Any) -> None:
    context.world.results.append(context.world.command.finish())


@when("the command comes to print a text")
@then("the command comes to print a text")
def command_prints(context: Any) -> None:
    command = context.world.command
    assert command.wait_for(lambda: command.stdout.strip(), 2 * START_S, "a text on stdout")


@then('within {seconds:d} s the command prints "{text:Text}"')
def command_prints_text(context: Any, seconds: int, text: str) -> None:
    command = context.world.command
    assert command.wait_for(lambda: text in command.stdout, seconds, f"{text!r} on stdout")


@then("the exit code is {code:d}")
def exit_code_is(context: Any, code: int) -> None:
    last = context.world.last
    assert last.exit_code == code, last


@then("the command took less than {seconds:d} s")
def command_took(context: Any, seconds: int) -> None:
    assert context.world.last.duration_s < seconds, context.world.last


@then("both commands ended with exit code 0 and the same text")
def same_text(context: Any) -> None:
    first, second = context.world.results[-2:]
    assert (first.exit_code, second.exit_code) == (0, 0), f"{first}\n{second}"
    assert first.stdout.strip(), first
    assert first.stdout == second.stdout, f"{first}\n{second}"


@given("blep has no configuration")
def no_configuration(context: Any) -> None:
    context.world.fleet.variables.update({"RBEE_CONFIG": None, "RBEE_QUEEN_URL": None})


@then("the process of the keeper has ended")
def keeper_has_ended(context: Any) -> None:
    fleet = context.world.fleet
    assert not processes.is_alive(context.world.last.pid)
    assert processes.daemons(fleet.blep.state, "rbee-keeper") == []


@then("the keeper has a queen as its child, below it a hive and below that a worker, all on loopback")
def has_family(context: Any) -> None:
    command = context.world.command
    found = command.wait_for(lambda: processes.family(command.pid), 2 * START_S, "queen, hive and worker")
    context.world.family = found
    hosts = {host for member in found for host, _ in member.addresses}
    assert hosts == {"127.0.0.1"}, found


@then("the queen does not listen on the port of the queen URL")
def queen_elsewhere(context: Any) -> None:
    ports = [port for _, port in context.world.family[0].addresses]
    assert context.world.fleet.queen_port not in ports, ports


@then("none of these processes is left and their ports are free")
def family_is_gone(context: Any) -> None:
    left = [member for member in context.world.family if processes.is_alive(member.pid)]
    assert left == [], left
    assert context.world.fleet.processes() == []
    bound = [
        address for member in context.world.family for address in member.addresses if not is_free(*address)
    ]
    assert bound == [], bound


@then("within {seconds:d} s none of these processes is left and their ports are free")
def family_goes(context: Any, seconds: int) -> None:
    pids = [member.pid for member in context.world.family]

    def are_gone() -> bool:
        # One that is ending has lost what it is told by before it has gone.
        return not context.world.fleet.processes() and not any(map(processes.is_alive, pids))

    wait_until(are_gone, seconds, "the end of all processes")
    family_is_gone(context)
