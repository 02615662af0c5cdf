"""Chat templates: the dialect models are published in, and what a hostile one cannot do."""

from __future__ import annotations

import pytest

from rbee.core.errors import ModelIncompatible
from rbee.models.chat_template import MAX_SOURCE_CHARACTERS, ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


def rendered(source: str, system: str | None = None) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render("PROMPT", system)


def test_a_conversation_ends_where_the_answer_begins() -> None:
    assert rendered(CHATML, "SYSTEM") == (
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\nPROMPT<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{{ bos_token }}{{ messages[0].content }}", "<s>PROMPT"),
        ("{{ {'k': '<é>', 'l': [1, none]} | tojson }}", '{"k": "<é>", "l": [1, null]}'),
        ("{{ {'k': 1} | tojson(indent=2) }}", '{\n  "k": 1\n}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if tools is none and documents is none and unset is not defined %}ok{% endif %}", "ok"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "PROMPT"),
        ("{{ '<b>&' }}", "<b>&"),
        ("{{ 'a-b'.split('-')[-1] ~ ('x' * 3) + 'y' }}", "bxxxy"),
        (
            "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
            "1",
        ),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}{{ m(2) }}", "[1][2]"),
    ],
)
def test_the_dialect_of_published_templates_is_spoken(source: str, expected: str) -> None:
    assert rendered(source) == expected


@pytest.mark.parametrize("keeps", [REFUSES_SYSTEM, "", "{# only the last message #}"])
def test_a_template_without_a_system_role_gets_the_system_text_before_the_prompt(keeps: str) -> None:
    assert rendered(keeps + "U:{{ messages[-1].content }}", "SYSTEM") == "U:SYSTEM\n\nPROMPT"


def test_a_blank_system_text_still_gives_a_conversation() -> None:
    assert rendered(CHATML, "  ").endswith("PROMPT<|im_end|>\n<|im_start|>assistant\n")


def test_a_refusal_of_the_conversation_itself_is_reported_with_its_reason() -> None:
    with pytest.raises(ModelIncompatible, match="only for tools") as refusal:
        rendered("{{ raise_exception('only for tools') }}")
    assert "--raw" in str(refusal.value.suggestion)


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% endfor %}", "{{ " + "(" * 600 + ")" * 600 + " }}"])
def test_a_syntax_error_is_reported_when_the_template_is_read(source: str) -> None:
    with pytest.raises(ModelIncompatible, match="chat template"):
        ChatTemplate(source)


def test_a_template_that_is_too_long_is_refused() -> None:
    with pytest.raises(ModelIncompatible, match="characters"):
        ChatTemplate("x" * (MAX_SOURCE_CHARACTERS + 1))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include 'file' %}",
        "{% import 'os' as os %}",
        "{{ messages[7].content }}",
        "{{ nothing.here }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ {}['x'] + 1 }}",
    ],
)
def test_what_the_sandbox_or_python_refuses_is_an_incompatible_model(source: str) -> None:
    with pytest.raises(ModelIncompatible, match="chat template"):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{{ 999999999 * [1] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x' | center(999999999) }}",
        "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    ],
)
def test_a_template_cannot_run_or_grow_without_end(source: str) -> None:
    with pytest.raises(ModelIncompatible, match="chat template"):
        rendered(source)


def test_a_spent_budget_does_not_burden_the_next_rendering() -> None:
    template = ChatTemplate("{% for a in range(15000) %}{% endfor %}{{ messages[0].content }}")
    assert [template.render("P") for _ in range(4)] == ["P"] * 4
