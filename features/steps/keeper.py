"""Running the keeper, and what it printed and how it ended."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from behave import given, then, when
from features.steps.traffic import last_stream
from features.support import processes, system
from features.support.commands import wait_until
from features.support.machines import START_S
from features.support.ports import is_free
from features.support.tables import cells, check_fields, check_order, values

_CELLS = r"\[[█-]{20}\] (\d+)%"
BARS = {
    "download": rf"^Downloading model\.\.\. {_CELLS} \(\d+\.\d MB / \d+\.\d MB\) @ \d+\.\d MB/s$",
    "conversion": rf"^Converting model\.\.\. {_CELLS} \(\d+/\d+ tensors\)$",
    "loading": rf"^Loading model to VRAM\.\.\. {_CELLS} \(\d+/\d+ layers\)$",
}
"""The lines of each bar; the group is the percentage."""


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


@then("{stream:w} shows in order")
def stream_shows_in_order(context: Any, stream: str) -> None:
    wanted = context.world.fill(context.text).split("\n")
    check_order(context.world.last.stream(stream), wanted)


@then("{stream:w} shows the lines in a row")
def stream_shows_lines(context: Any, stream: str) -> None:
    wanted = context.world.fill(context.text).splitlines()
    lines = context.world.last.stream(stream).splitlines()
    starts = [lines[first : first + len(wanted)] for first in range(len(lines))]
    assert wanted in starts, f"{wanted}\n{context.world.last}"


@then('{stream:w} has "{text:Text}" {count:d} times')
def stream_has_times(context: Any, stream: str, text: str, count: int) -> None:
    assert context.world.last.stream(stream).count(text) == count, context.world.last


@then("stderr counts the tokens of the stream out of {most:d}")
def counts_tokens(context: Any, most: int) -> None:
    tokens = [data for _, data in last_stream(context.world).events if "token" in data]
    lines = context.world.last.stderr.splitlines()
    assert f"Tokens generated: {len(tokens)} / {most}" in lines, context.world.last


@then("the partial result has mode 0600 and is what stdout has")
def partial_result(context: Any) -> None:
    last = context.world.last
    (named,) = re.findall(r"^Partial result saved to: (\S+)$", last.stderr, re.MULTILINE)
    request_id = last_stream(context.world).headers["x-request-id"]
    assert named.endswith(f"/rbee-partial-{request_id}.txt"), named
    assert stat.S_IMODE(Path(named).stat().st_mode) == 0o600, named
    assert Path(named).read_text() == last.stdout, last


@then('neither "{first:Text}" nor "{second:Text}" is in an output or a log')
def keys_are_nowhere(context: Any, first: str, second: str) -> None:
    world = context.world
    texts = [result.stdout + result.stderr for result in world.results]
    texts += [daemon.command.stdout + daemon.command.stderr for daemon in world.fleet.daemons]
    texts += [file.read_text(errors="replace") for file in context.folder.rglob("*.log")]
    assert len(texts) > 2, texts
    for key in (world.fill(first), world.fill(second)):
        assert not [text for text in texts if key in text], key


@then('after "{text:Text}" stderr has a download bar of {least:d} % to {most:d} %')
def bar_after(context: Any, text: str, least: int, most: int) -> None:
    rest = context.world.last.stderr.partition(text)[2]
    bars = [int(match[1]) for match in re.finditer(BARS["download"], rest, re.MULTILINE)]
    assert [percent for percent in bars if least <= percent <= most], context.world.last


@then('{stream:w} has "{text:Text}"')
def stream_has(context: Any, stream: str, text: str) -> None:
    wanted = system.with_home(context.world, text)
    assert wanted in context.world.last.stream(stream), f"{wanted!r} is not in {stream}\n{context.world.last}"


@then('{stream:w} does not have "{text:Text}"')
def stream_has_not(context: Any, stream: str, text: str) -> None:
    unwanted = context.world.fill(text)
    assert unwanted not in context.world.last.stream(stream), f"{unwanted!r} is there\n{context.world.last}"


@then("{stream:w} has a text")
def stream_has_text(context: Any, stream: str) -> None:
    assert context.world.last.stream(stream).strip(), context.world.last


@then("{stream:w} is empty")
def stream_is_empty(context: Any, stream: str) -> None:
    assert context.world.last.stream(stream) == "", context.world.last


@then('{stream:w} has the line "{text:Text}"')
def stream_has_line(context: Any, stream: str, text: str) -> None:
    lines = context.world.last.stream(stream).splitlines()
    assert context.world.fill(text) in lines, context.world.last


@then('{stream:w} is the line "{text:Text}"')
def stream_is_line(context: Any, stream: str, text: str) -> None:
    assert context.world.last.stream(stream) == context.world.fill(text) + "\n", context.world.last


@then('{stream:w} ends with the line "{text:Text}"')
def stream_ends_with_line(context: Any, stream: str, text: str) -> None:
    lines = context.world.last.stream(stream).splitlines()
    assert lines[-1:] == [context.world.fill(text)], context.world.last


@then('{stream:w} has a line that starts with "{text:Text}"')
def stream_has_line_start(context: Any, stream: str, text: str) -> None:
    lines = context.world.last.stream(stream).splitlines()
    assert any(line.startswith(text) for line in lines), context.world.last


@then('{stream:w} starts with "{text:Text}"')
def stream_starts_with(context: Any, stream: str, text: str) -> None:
    assert context.world.last.stream(stream).startswith(text), context.world.last


@then("stderr has a {kind:w} bar")
def has_bar(context: Any, kind: str) -> None:
    assert re.search(BARS[kind], context.world.last.stderr, re.MULTILINE), context.world.last


@then("stderr has a {kind:w} bar that ends at 100 %")
def bar_ends(context: Any, kind: str) -> None:
    bars = [match[1] for match in re.finditer(BARS[kind], context.world.last.stderr, re.MULTILINE)]
    assert bars[-1:] == ["100"], context.world.last


@then("stdout is JSON with")
def stdout_is_json(context: Any) -> None:
    world = context.world
    check_fields(world.last.json(), values(world, context.table))


@then("stdout lists the workers")
def stdout_lists_workers(context: Any) -> None:
    world = context.world
    names, *wanted = cells(context.table)
    listed = world.last.json()["workers"]
    assert len(listed) == len(wanted), listed
    for record, row in zip(listed, wanted, strict=True):
        check_fields(record, dict(zip(names, map(world.fill, row), strict=True)))


@then("stdout has one line for each worker that its hive lists, with")
def lines_of_hives(context: Any) -> None:
    world = context.world
    _, *lines = world.last.stdout.splitlines()
    shown = sorted(line.split() for line in lines)
    expected = []
    for name, node in cells(context.table):
        record = world.workers[name].record
        expected.append([record["id"], node, record["state"], record["model_ref"], record["url"]])
    assert shown == sorted(expected), world.last


@then('stdout has one line for each worker that answers "GET /v1/ready", with')
def lines_of_workers(context: Any) -> None:
    world = context.world
    _, *lines = world.last.stdout.splitlines()
    shown = sorted(line.split() for line in lines)
    expected = []
    for name, state, ready in cells(context.table):
        answer = world.workers[name].ready()
        assert (answer["state"], answer["ready"]) == (state, json.loads(ready)), answer
        expected.append([world.workers[name].id, state, ready])
    assert shown == sorted(expected), world.last


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
    wait_until(lambda: not context.world.fleet.processes(), seconds, "the end of all processes")
    family_is_gone(context)
