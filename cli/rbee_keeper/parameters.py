"""Flags and values that several commands share: their types, the global flags, ``--json``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from rbee_keeper.session import Session

F = TypeVar("F", bound=Callable[..., Any])

BACKENDS = ("cpu", "cuda", "metal")
_NODE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IDENTIFIER = re.compile(r"[A-Za-z0-9-]{1,64}")


class _Matching(click.ParamType):
    """A text of one shape, checked before any process is started or asked."""

    def __init__(self, name: str, pattern: re.Pattern[str], rule: str) -> None:
        self.name = name
        self._pattern = pattern
        self._rule = rule

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self._pattern.fullmatch(value):
            self.fail(f"'{value}' {self._rule}", param, ctx)
        return str(value)


NODE_NAME = _Matching(
    "node", _NODE_NAME, "is not a node name (1 to 63 lower-case letters, digits and inner dashes)"
)
WORKER_ID = _Matching("id", _IDENTIFIER, "is not a worker id (letters, digits and dashes)")


class _ModelReference(click.ParamType):
    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from rbee.core.errors import InvalidModelRef
        from rbee.core.references import parse_model_ref

        try:
            return str(parse_model_ref(value))
        except InvalidModelRef as error:
            self.fail(f"{error.details['expected']}\n\nSuggestion: {error.suggestion}", param, ctx)


MODEL = _ModelReference()


class _QueenUrl(click.ParamType):
    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        problem = queen_url_problem(value)
        if problem:
            self.fail(f"'{value}' {problem}", param, ctx)
        return str(value)


def queen_url_problem(url: str) -> str | None:
    """Why ``url`` cannot be a queen's, or None."""
    try:
        parts = urlsplit(url)
        has_extras = bool(parts.username or parts.password or parts.query or parts.fragment)
        is_root = parts.path in ("", "/") and not has_extras
        is_plain = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and is_root
    except ValueError:
        is_plain = False
    return None if is_plain else "is not of the form http://HOST:PORT"


class FiniteRange(click.FloatRange):
    """A number in a range; unlike click's own it takes neither ``nan`` nor ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a finite number", param, ctx)
        return number


class JsonValue(click.ParamType):
    """A JSON text of one Python type."""

    name = "json"

    def __init__(self, kind: type, example: str) -> None:
        self._kind = kind
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        if not isinstance(parsed, self._kind):
            self.fail(f"'{value}' is not JSON like {self._example}", param, ctx)
        return parsed


def _session(ctx: click.Context) -> Session:
    session = ctx.find_object(Session)
    if session is None:
        raise RuntimeError("the program was called without its session")
    return session


def _global_options(*, hidden: bool) -> list[click.Option]:
    """``--config``, ``--queen-url`` and ``--no-color``; accepted before and after the command's name."""

    def store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value and param.name == "no_color":
            _session(ctx).terminal.disable_color()
        elif value:
            setattr(_session(ctx).options, str(param.name), value)

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(names, callback=store, expose_value=False, hidden=hidden, **attributes)

    return [
        option("--config", metavar="FILE", help="Configuration file (TOML)."),
        option("--queen-url", metavar="URL", type=_QueenUrl(), help="The queen to use."),
        option("--no-color", is_flag=True, help="No colours, not even on a terminal."),
    ]


class KeeperCommand(click.Command):
    """A command that also takes the global flags, wherever the user writes them."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.extend(_global_options(hidden=True))


class KeeperGroup(click.Group):
    """A group of keeper commands."""

    command_class = KeeperCommand


def global_options(function: F) -> F:
    """The global flags, shown in the help; for the program itself."""
    listed: list[click.Option] = getattr(function, "__click_params__", [])
    function.__click_params__ = listed + _global_options(hidden=False)[::-1]  # type: ignore[attr-defined]
    return function


def json_option(function: F) -> F:
    """``--json``: the result as JSON instead of text."""

    def store(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        _session(ctx).as_json = value

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=store, help="Print the result as JSON."
    )(function)
