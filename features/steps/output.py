"""Then steps on what a command printed: lines, bars, lists and JSON."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from behave import then
from features.steps.traffic import last_stream
from features.support import system
from features.support.tables import cells, check_fields, check_order, values

_CELLS = r"\[[█-]{20}\] (\d+)%"
BARS = {
    "download": rf"^Downloading model\.\.\. {_CELLS} \(\d+\.\d MB / \d+\.\d MB\) @ \d+\.\d MB/s$",
    "conversion": rf"^Converting model\.\.\. {_CELLS} \(\d+/\d+ tensors\)$",
    "loading": rf"^Loading model to VRAM\.\.\. {_CELLS} \(\d+/\d+ layers\)$",
}
"""The lines of each bar; the group is the percentage."""


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
