"""A model's chat template: Jinja2 in a sandbox that cannot change, read, or endlessly compute anything.

The dialect is the one models are published with (Hugging Face's transformers): block trimming, loop controls,
``raise_exception``, ``strftime_now``, a ``tojson`` that leaves HTML characters alone, ``{% generation %}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rbee.core.errors import ModelIncompatible

MAX_SOURCE_CHARACTERS = 262_144
MAX_VALUE_CHARACTERS = 4_194_304
MAX_STEPS = 20_000
MAX_SECONDS = 2.0


class _Refused(jinja2.TemplateError):
    """The template called ``raise_exception``: it does not take such a conversation."""


class _TooMuch(jinja2.TemplateError):
    """The template passed a limit."""


class ChatTemplate:
    """Turns a prompt into the text that the model was trained to answer."""

    def __init__(
        self,
        source: str,
        special_texts: Mapping[str, str] | None = None,
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """``special_texts`` are variables such as ``bos_token``; ``now`` is the time that ``strftime_now``
        shows. Raises ModelIncompatible for a template that is too long or has a syntax error."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise _incompatible(f"it has more than {MAX_SOURCE_CHARACTERS} characters")
        self.source = source
        self._special_texts = dict(special_texts or {})
        self._environment = _Environment()
        self._environment.globals["strftime_now"] = lambda format: now().strftime(format)
        try:
            tree = self._environment.parse(source)
            _guard(tree, self._environment)
            code = self._environment.compile(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise _incompatible(_reason(error)) from None
        self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)

    def render(self, prompt: str, system: str | None = None) -> str:
        """The conversation so far, up to where the answer begins.

        A template that refuses or leaves out a system message gets it in front of the prompt instead. Raises
        ModelIncompatible when the template fails or passes a limit.
        """
        try:
            if system is None:
                return self._render({"role": "user", "content": prompt})
            return self._render_with_system(prompt, system)
        except _TEMPLATE_FAILURES as error:
            raise _incompatible(_reason(error)) from None

    def _render_with_system(self, prompt: str, system: str) -> str:
        try:
            text = self._render({"role": "system", "content": system}, {"role": "user", "content": prompt})
        except _Refused:
            pass
        else:
            if system.strip() in text:
                return text
        return self._render({"role": "user", "content": f"{system}\n\n{prompt}"})

    def _render(self, *messages: dict[str, str]) -> str:
        variables: dict[str, Any] = {
            **self._special_texts,
            "messages": list(messages),
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        _budget.set(_Budget())
        pieces, size = [], 0
        for piece in self._template.generate(variables):
            size += len(piece)
            if size > MAX_VALUE_CHARACTERS:
                raise _TooMuch(f"its output has more than {MAX_VALUE_CHARACTERS} characters")
            pieces.append(piece)
        return "".join(pieces)


@dataclass
class _Budget:
    """What one rendering may still cost."""

    steps: int = MAX_STEPS
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)


# One rendering runs in one context; a model's template serves several threads.
_budget: ContextVar[_Budget] = ContextVar("chat_template_budget")

# What the code of a template can raise by itself; jinja2 passes such errors on as they are.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def _incompatible(reason: str) -> ModelIncompatible:
    return ModelIncompatible(
        f"The model's chat template cannot be used: {reason}",
        details={"format": "tokenizer.chat_template", "reason": reason},
        suggestion="Send the prompt without the template: --raw",
    )


def _reason(error: BaseException) -> str:
    return f"{str(error) or type(error).__name__}"[:300]


class _GenerationBlock(Extension):
    """``{% generation %}``, which marks the assistant's words for training, is just its content."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Also bounds the work of a rendering: steps of loops and macros, time, and the size of built values."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationBlock],
            autoescape=False,
        )
        # One number is enough to fill the memory with it, and templates have no use for it.
        del self.filters["center"]
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception

    def count_step(self) -> None:
        budget = _budget.get()
        budget.steps -= 1
        if budget.steps < 0 or time.monotonic() > budget.deadline:
            raise _TooMuch("it does not come to an end")

    def bounded(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple) and len(value) > MAX_VALUE_CHARACTERS:
            raise _TooMuch("it builds a value that is too large")
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            # Nothing a template needs, and a short way to compute for ever.
            raise _TooMuch("it uses the operator **")
        if operator == "*":
            lengths = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
            factors = [side for side in (left, right) if isinstance(side, int)]
            if lengths and factors and lengths[0] * factors[0] > MAX_VALUE_CHARACTERS:
                raise _TooMuch("it builds a value that is too large")
        return self.bounded(super().call_binop(context, operator, left, right))


def _guard(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Makes every round of a loop and every call of a macro a counted step, and every ``~`` bounded."""
    repeated: nodes.For | nodes.Macro | nodes.CallBlock
    for repeated in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):  # type: ignore[assignment]
        step = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None)
        if isinstance(repeated, nodes.For) and repeated.test is not None:
            # Rounds that the condition leaves out cost time, too. Counting answers nothing, which is false.
            repeated.test = nodes.And(nodes.Not(step), repeated.test)
        else:
            repeated.body.insert(0, nodes.ExprStmt(step))
    for joined in list(tree.find_all(nodes.Concat)):
        inner = nodes.Concat(joined.nodes)
        joined.nodes = [nodes.Call(nodes.EnvironmentAttribute("bounded"), [inner], [], None, None)]
    tree.set_environment(environment)
    tree.set_lineno(1)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
