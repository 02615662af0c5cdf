"""The texts that ship: read from the package, put into chat templates, the same on every day."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbee.models.chat_template import ChatTemplate
from rbee.models.conversion import convert
from rbee.models.sample_texts import Exchange, SampleSet, digest_of, exchanges, sample_ids, sample_texts
from rbee.models.text import TextModel, load_text_model
from support.gguf_factory import TinyModel


@pytest.fixture
def model(tmp_path: Path) -> TextModel:
    source = TinyModel().write(tmp_path / "m.gguf")
    return load_text_model(convert(source, tmp_path, "float32", on_progress=lambda _done, _total: None))


def test_both_sets_have_several_kinds_and_digests_of_their_own() -> None:
    assert {"chat", "code", "prose"} <= set(sample_texts(SampleSet.CALIBRATION))
    assert {"chat", "code", "prose"} <= set(sample_texts(SampleSet.HELD_OUT))
    assert digest_of(SampleSet.CALIBRATION) != digest_of(SampleSet.HELD_OUT)


def test_turns_become_exchanges_and_a_system_text_holds_for_one() -> None:
    text = "system: Be brief.\nuser: Why?\nassistant: Because:\nit is.\n\nuser: And?\nassistant: No.\n"
    assert list(exchanges(text)) == [
        Exchange("Be brief.", "Why?", "Because:\nit is."),
        Exchange(None, "And?", "No."),
    ]


def test_texts_are_cut_to_the_longest_allowed(model: TextModel) -> None:
    found = sample_ids(SampleSet.CALIBRATION, model, 20)
    assert max(len(ids) for texts in found.values() for ids in texts) == 20


def test_a_template_that_names_the_day_gives_the_same_ids_on_every_day(model: TextModel) -> None:
    source = "{{ strftime_now('%Y') }} {{ messages[-1].content }}"
    dated = replace(model, template=ChatTemplate(source))
    fixed = replace(model, template=ChatTemplate(source.replace("{{ strftime_now('%Y') }}", "2024")))
    assert sample_ids(SampleSet.HELD_OUT, dated, 99) == sample_ids(SampleSet.HELD_OUT, fixed, 99)


def test_a_template_that_fails_does_not_keep_a_model_from_being_calibrated(model: TextModel) -> None:
    failing = replace(model, template=ChatTemplate("{{ raise_exception('no') }}"))
    assert sample_ids(SampleSet.CALIBRATION, failing, 50)["chat"]
