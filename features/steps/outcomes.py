"""Then steps on what a finished command printed and how it ended."""

from __future__ import annotations

import json
import re
from typing import Any

from behave import then
from features.support.observing import call


def in_order(text: str, wanted: list[str]) -> None:
    """Each wanted line is in the text, after the one before it."""
    position = 0
    for line in wanted:
        found = text.find(line, position)
        assert found >= 0, f"missing (in this order): {line!r}\n--- in:\n{text}"
        position = found + len(line)


@then("the exit code is {code:d}")
def exit_code_is(context: Any, code: int) -> None:
    last = context.world.last
    assert last.exit_code == code, f"exit code {last.exit_code}\n{last.stdout}\n{last.stderr}"


@then("{stream} shows in order")
def stream_shows_in_order(context: Any, stream: str) -> None:
    in_order(context.world.last.stream(stream), context.text.split("\n"))


@then('{stream:w} has "{text}"')
def stream_has(context: Any, stream: str, text: str) -> None:
    printed = context.world.last.stream(stream)
    assert text in printed, f"{text!r} is not in {stream}:\n{printed}"


@then('{stream:w} does not have "{text}"')
def stream_has_not(context: Any, stream: str, text: str) -> None:
    printed = context.world.last.stream(stream)
    assert text not in printed, f"{text!r} is in {stream}:\n{printed}"


@then('{stream:w} has a line that starts with "{text}"')
def stream_has_line(context: Any, stream: str, text: str) -> None:
    printed = context.world.last.stream(stream)
    assert any(line.startswith(text) for line in printed.splitlines()), printed


@then('{stream:w} starts with "{text}"')
def stream_starts_with(context: Any, stream: str, text: str) -> None:
    printed = context.world.last.stream(stream)
    assert printed.startswith(text), printed


@then("{stream:w} is empty")
def stream_is_empty(context: Any, stream: str) -> None:
    printed = context.world.last.stream(stream)
    assert printed == "", printed


@then('stdout is the JSON that "GET {path}" answers')
def stdout_is_answer(context: Any, path: str) -> None:
    answered = call("GET", context.world.fleet.queen_url + path)
    assert answered.status == 200, answered.body
    printed = json.loads(context.world.last.stdout)
    assert _without_times(printed) == _without_times(answered.json()), context.world.last.stdout


def _without_times(value: Any) -> Any:
    """The value without fields that a second look a moment later may see changed."""
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not re.search(r"last_connected", k)}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
