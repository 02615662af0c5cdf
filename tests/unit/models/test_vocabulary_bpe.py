"""A byte-level BPE vocabulary from GGUF metadata, and the metadata that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import ModelIncompatible
from rbee.models.text import load_text_model
from rbee.models.token_names import text_of_name, unique_names
from support.tokenizer_samples import bpe_metadata, vocabulary_of, write_text_files

SIZE = len(bpe_metadata()["tokenizer.ggml.tokens"])


def test_tokens_keep_their_ids_and_texts() -> None:
    vocabulary = vocabulary_of(bpe_metadata())
    assert vocabulary.kind == "bpe"
    assert vocabulary.tokens == bpe_metadata()["tokenizer.ggml.tokens"]
    assert not vocabulary.add_space_prefix


def test_an_unknown_pre_tokenizer_is_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(ModelIncompatible, match="made-up") as refusal:
        vocabulary_of(bpe_metadata("made-up"))
    assert refusal.value.details["found"] == "made-up"
    assert {"gpt-2", "smollm", "llama-bpe", "qwen2", "default"} <= set(refusal.value.details["supported"])


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2", "none"])
def test_an_unknown_tokenizer_is_refused_by_name(model: str) -> None:
    with pytest.raises(ModelIncompatible, match=f"'{model}'") as refusal:
        vocabulary_of(bpe_metadata(model=model))
    assert refusal.value.details["found"] == model


def test_a_file_that_names_no_pre_tokenizer_gets_the_default_one() -> None:
    assert (
        vocabulary_of(bpe_metadata(None)).tokenizer_file
        == vocabulary_of(bpe_metadata("default")).tokenizer_file
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", None),
        ("tokens", []),
        ("tokens", "text"),
        ("tokens", [1, 2, 3]),
        ("tokens", ["a", "b"]),
        ("token_type", [1]),
        ("token_type", ["x"] * SIZE),
        ("token_type", [99] * SIZE),
        ("token_type", 3),
        ("scores", [0.0]),
        ("scores", [float("nan")] * SIZE),
        ("scores", ["x"] * SIZE),
        ("merges", None),
        ("merges", []),
        ("merges", [7]),
        ("merges", ["nospace"]),
        ("merges", ["a "]),
        ("merges", [" "]),
        ("merges", [""]),
        ("merges", ["nothere alsonot"]),
        ("merges", ["a Ġunreachable"]),
        ("pre", 5),
        ("model", None),
        ("model", 5),
        ("bos_token_id", SIZE),
        ("bos_token_id", -1),
        ("bos_token_id", "1"),
        ("bos_token_id", True),
        ("eos_token_id", 2**31),
        ("eot_token_id", SIZE + 1),
        ("eom_token_id", 1.5),
        ("unknown_token_id", SIZE),
        ("add_bos_token", 1),
        ("add_bos_token", "true"),
    ],
)
def test_metadata_that_contradicts_itself_is_refused(key: str, value: Any) -> None:
    metadata = bpe_metadata()
    full_key = f"tokenizer.ggml.{key}"
    if value is None:
        del metadata[full_key]
    else:
        metadata[full_key] = value
    with pytest.raises(ModelIncompatible) as refusal:
        vocabulary_of(metadata)
    assert refusal.value.details["format"].startswith("tokenizer.ggml.")


def test_adding_a_beginning_of_text_token_needs_one() -> None:
    metadata = bpe_metadata(add_bos_token=True)
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(ModelIncompatible, match="beginning-of-text"):
        vocabulary_of(metadata)


def test_the_default_of_the_pre_tokenizer_decides_on_the_beginning_of_text_unless_the_file_does() -> None:
    assert vocabulary_of(bpe_metadata("llama-bpe")).add_bos
    assert not vocabulary_of(bpe_metadata("llama-bpe", add_bos_token=False)).add_bos
    assert not vocabulary_of(bpe_metadata("qwen2")).add_bos
    assert vocabulary_of(bpe_metadata("qwen2", add_bos_token=True)).add_bos


def test_generation_stops_at_the_named_ids_and_at_known_end_markers() -> None:
    vocabulary = vocabulary_of(bpe_metadata(eos_token_id=10, eot_token_id=11, eom_token_id=12))
    texts = {vocabulary.tokens[token_id] for token_id in vocabulary.stop_token_ids}
    assert {10, 11, 12} < set(vocabulary.stop_token_ids)
    assert {"<|endoftext|>", "<|im_end|>"} <= texts
    assert "<|im_start|>" not in texts
    assert "<tool>" not in texts


def test_an_end_marker_is_a_control_token_even_if_the_file_says_it_is_text() -> None:
    vocabulary = vocabulary_of(bpe_metadata(token_type=[1] * SIZE))
    control = {token.text for token in vocabulary.special_tokens if token.is_control}
    assert control == {"<|endoftext|>", "<|im_end|>"}


def test_without_an_end_of_text_id_no_ordinary_token_ends_the_text() -> None:
    metadata = bpe_metadata()
    del metadata["tokenizer.ggml.eos_token_id"]
    assert vocabulary_of(metadata).eos_token_id == 2  # <|im_end|>, a control token
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = [*tokens[4:], *tokens[:4]]
    metadata["tokenizer.ggml.token_type"] = [1] * SIZE
    vocabulary = vocabulary_of(metadata)
    assert vocabulary.eos_token_id is None
    assert 2 not in vocabulary.stop_token_ids


def test_repeated_and_empty_tokens_get_names_of_their_own_and_keep_their_text() -> None:
    texts = ["a", "b", "a", "", "a", ""]
    names = unique_names(texts)
    assert len(set(names)) == len(names)
    assert names[:2] == ["a", "b"]
    assert [text_of_name(name, token_id) for token_id, name in enumerate(names)] == texts


def test_a_name_that_is_taken_on_purpose_is_still_made_unique() -> None:
    texts = ["a", "a\U0010ffff2", "a"]
    names = unique_names(texts)
    assert len(set(names)) == 3
    assert text_of_name(names[2], 2) == "a"
    assert text_of_name(names[1], 1) == texts[1]


def test_a_vocabulary_with_repeated_tokens_encodes_and_decodes(tmp_path: Path) -> None:
    metadata = bpe_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    repeated = tokens.index("he")
    metadata["tokenizer.ggml.tokens"] = [*tokens, "he", "he", ""]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1, 1]
    vocabulary = vocabulary_of(metadata)
    assert len(set(vocabulary.tokens)) == SIZE + 3
    model = load_text_model(write_text_files(tmp_path, vocabulary))
    assert model.encode_prompt("he", raw=True) == [repeated]
    decoder = model.decoder()
    assert [decoder.feed(token_id) for token_id in (repeated, SIZE, SIZE + 1, SIZE + 2)] == ["he"] * 3 + [""]


def test_the_first_of_two_equal_merges_counts() -> None:
    metadata = bpe_metadata()
    merges = metadata["tokenizer.ggml.merges"]
    once = vocabulary_of(metadata).tokenizer_file
    metadata["tokenizer.ggml.merges"] = [*merges, *merges[:5]]
    assert vocabulary_of(metadata).tokenizer_file == once


def test_a_merge_of_tokens_with_spaces_is_understood(tmp_path: Path) -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], " ", " a"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1]
    metadata["tokenizer.ggml.merges"] = ["  a", *metadata["tokenizer.ggml.merges"]]
    merges = json.loads(vocabulary_of(metadata).tokenizer_file)["model"]["merges"]
    assert merges[0] == [" ", "a"]


def test_written_files_are_the_tokenizer_its_settings_and_the_template(tmp_path: Path) -> None:
    metadata = bpe_metadata() | {"tokenizer.chat_template": "{{ messages[0].content }}\r\n"}
    vocabulary_of(metadata).write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (tmp_path / "chat_template.jinja").read_bytes() == b"{{ messages[0].content }}\r\n"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"tokenizer.chat_template": "A"}, "A"),
        ({"tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B"}, "A"),
        ({"tokenizer.chat_template.default": "D", "tokenizer.chat_templates": ["default", "x"]}, "D"),
        ({"tokenizer.chat_template.only": "O", "tokenizer.chat_templates": ["only"]}, "O"),
        ({"tokenizer.chat_template.a": "A", "tokenizer.chat_templates": ["a", "b"]}, None),
    ],
)
def test_the_default_template_is_taken_else_the_only_one(keys: dict[str, Any], expected: str | None) -> None:
    assert vocabulary_of(bpe_metadata() | keys).chat_template == expected


@pytest.mark.parametrize("template", [5, "{% if %}", "{{ x", "x" * 300_000])
def test_a_template_that_is_no_template_is_refused(template: Any) -> None:
    with pytest.raises(ModelIncompatible) as refusal:
        vocabulary_of(bpe_metadata() | {"tokenizer.chat_template": template})
    assert refusal.value.details["format"] == "tokenizer.chat_template"
