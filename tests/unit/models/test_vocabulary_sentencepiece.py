"""A SentencePiece vocabulary from GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from rbee.core.errors import ModelIncompatible
from rbee.models.text import load_text_model
from support.tokenizer_samples import (
    VARIED_TEXTS,
    sentencepiece_metadata,
    trained_sentencepiece,
    vocabulary_of,
    write_text_files,
)

SIZE = len(sentencepiece_metadata()["tokenizer.ggml.tokens"])


def rebuilt(**more: Any) -> SentencePieceProcessor:
    vocabulary = vocabulary_of(sentencepiece_metadata(**more))
    return SentencePieceProcessor(model_proto=vocabulary.tokenizer_file)


def test_the_rebuilt_model_is_the_original_piece_by_piece() -> None:
    original = SentencePieceProcessor(model_proto=trained_sentencepiece("bpe"))
    ours = rebuilt()
    assert ours.vocab_size() == original.vocab_size()
    assert (ours.bos_id(), ours.eos_id(), ours.unk_id(), ours.pad_id()) == (1, 2, 0, -1)
    for token_id in range(ours.vocab_size()):
        for ask in ("id_to_piece", "get_score", "is_byte", "is_control", "is_unknown", "is_unused"):
            assert getattr(ours, ask)(token_id) == getattr(original, ask)(token_id)
    assert [ours.encode(text) for text in VARIED_TEXTS] == [original.encode(text) for text in VARIED_TEXTS]


def test_defaults_are_those_of_the_reference() -> None:
    metadata = sentencepiece_metadata()
    for name in ("bos", "eos", "unknown"):
        del metadata[f"tokenizer.ggml.{name}_token_id"]
    vocabulary = vocabulary_of(metadata)
    assert vocabulary.kind == "sentencepiece"
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id) == (1, 2)
    assert vocabulary.add_bos
    assert vocabulary.add_space_prefix
    assert 2 in vocabulary.stop_token_ids


def test_a_model_without_a_space_prefix_gets_none() -> None:
    assert not vocabulary_of(sentencepiece_metadata(add_space_prefix=False)).add_space_prefix
    assert rebuilt(add_space_prefix=False).normalize("a") == "a"
    assert rebuilt().normalize("a") == "▁a"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scores", [0.0]),
        ("scores", [float("inf")] * SIZE),
        ("scores", [1e300] * SIZE),
        ("scores", 1.0),
        ("token_type", [1] * (SIZE + 1)),
        ("add_space_prefix", "yes"),
        ("bos_token_id", SIZE),
        ("tokens", ["a"] * (SIZE - 1)),
    ],
)
def test_metadata_that_contradicts_itself_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ModelIncompatible):
        vocabulary_of(sentencepiece_metadata(**{key: value}))


@pytest.mark.parametrize("types", [None, [1] * SIZE, [2] * SIZE, [5] * SIZE, [0] * SIZE])
def test_a_vocabulary_of_odd_types_still_makes_a_model(types: list[int] | None) -> None:
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.token_type"] = types
    if types is None:
        del metadata["tokenizer.ggml.token_type"]
    assert SentencePieceProcessor(model_proto=vocabulary_of(metadata).tokenizer_file).unk_id() == 0


def test_a_vocabulary_without_all_byte_tokens_does_without_them(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata()
    types = metadata["tokenizer.ggml.token_type"]
    types[types.index(6)] = 5
    model = load_text_model(write_text_files(tmp_path, vocabulary_of(metadata)))
    unknown = model.encode("\U0001f9ff", honour_control=False)
    assert unknown[-1] == 0


def test_repeated_and_empty_pieces_are_told_apart(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata()
    for key, more in (("tokens", ["▁the", "", ""]), ("scores", [0.0] * 3), ("token_type", [1] * 3)):
        metadata[f"tokenizer.ggml.{key}"] = [*metadata[f"tokenizer.ggml.{key}"], *more]
    vocabulary = vocabulary_of(metadata)
    assert len(set(vocabulary.tokens)) == SIZE + 3
    model = load_text_model(write_text_files(tmp_path, vocabulary))
    assert [model.tokenizer.bytes_of(SIZE + n) for n in range(3)] == [b" the", b"", b""]
    assert model.encode("a the", honour_control=False)[-1] == vocabulary.tokens.index("▁the")
