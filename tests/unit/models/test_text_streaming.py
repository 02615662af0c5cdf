"""Text from tokens one at a time: complete characters only, and nothing lost or added."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from rbee.models.stream_decoding import StreamDecoder, byte_level_bytes, byte_token_value
from rbee.models.text import TextModel, load_text_model
from support.tokenizer_samples import (
    VARIED_TEXTS,
    bpe_metadata,
    sentencepiece_metadata,
    trained_sentencepiece,
    vocabulary_of,
    write_text_files,
)

# U+2581 is how SentencePiece writes a space, so that it cannot come back; the other texts are tokens.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")).filter(
    lambda text: "<tool>" not in text
)
MODELS: dict[str, Callable[[], dict[str, object]]] = {
    "gpt-2": bpe_metadata,
    "llama-bpe": lambda: bpe_metadata("llama-bpe"),
    "sentencepiece": sentencepiece_metadata,
    "unigram": lambda: sentencepiece_metadata("unigram"),
    "no prefix": lambda: sentencepiece_metadata(add_space_prefix=False),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_text_model(write_text_files(folder, vocabulary_of(MODELS[request.param]())))


def pieces_of(model: TextModel, ids: list[int]) -> list[str]:
    decoder = model.decoder()
    return [*map(decoder.feed, ids), decoder.flush()]


@given(text=TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_comes_back_from_its_tokens(model: TextModel, text: str) -> None:
    ids = model.encode(text, honour_control=False)
    assert "".join(pieces_of(model, ids)) == text


@given(text=TEXTS.filter(lambda text: "\ufffd" not in text))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_character_is_never_shown_by_halves(model: TextModel, text: str) -> None:
    pieces = pieces_of(model, model.encode(text, honour_control=False))
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_pieces_of_any_tokens_joined_are_the_text_of_the_whole(model: TextModel, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, model.vocab_size - 1)))
    whole = b"".join(map(model.tokenizer.bytes_of, ids))
    if model.tokenizer.drops_leading_space:
        whole = whole.removeprefix(b" ")
    assert "".join(pieces_of(model, ids)) == whole.decode("utf-8", "replace")


def test_a_character_of_several_tokens_comes_with_its_last_one(model: TextModel) -> None:
    ids = model.encode("\U0001f9ff", honour_control=False)
    pieces = pieces_of(model, ids)
    assert len(ids) >= 3
    assert [piece for piece in pieces if piece] == ["\U0001f9ff"]
    assert pieces[-2] == "\U0001f9ff"


def test_an_unfinished_character_is_shown_as_a_replacement_at_the_end(model: TextModel) -> None:
    ids = model.encode("a\U0001f9ff", honour_control=False)
    assert "".join(pieces_of(model, ids[:-1])) == "a\ufffd"


def test_bytes_that_are_no_text_are_replaced() -> None:
    decoder = StreamDecoder({0: b"\xff", 1: b"\xe2\x82", 2: b"A"}.__getitem__, drop_leading_space=False)
    assert [decoder.feed(token_id) for token_id in (0, 1, 2)] == ["\ufffd", "", "\ufffdA"]
    assert decoder.flush() == ""


def test_control_tokens_have_no_text(model: TextModel) -> None:
    controls = [token for token in model.tokenizer.special_tokens if token.is_control]
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= {token.text for token in controls}
    assert "".join(pieces_of(model, [token.token_id for token in controls])) == ""


def test_sentencepiece_itself_decodes_the_same() -> None:
    original = SentencePieceProcessor(model_proto=trained_sentencepiece("bpe"))
    decoder_of = vocabulary_of(sentencepiece_metadata())
    assert decoder_of.add_space_prefix
    for text in VARIED_TEXTS:
        assert original.decode(original.encode(text)) == text


def test_the_space_at_the_start_belongs_to_a_text_that_is_continued(model: TextModel) -> None:
    spaced = next(i for i, token in enumerate(model.tokens) if re.fullmatch("[▁Ġ][a-z]+", token))
    word = model.tokens[spaced][1:]
    assert model.decoder(continues_text=True).feed(spaced) == f" {word}"
    decoder = model.decoder()
    assert decoder.feed(spaced) == (word if model.tokenizer.drops_leading_space else f" {word}")
    assert decoder.feed(spaced) == f" {word}"


def test_gpt2s_byte_alphabet_covers_every_byte() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = ByteLevel.alphabet()
    assert {byte_level_bytes(character) for character in alphabet} == {bytes([b]) for b in range(256)}
    assert byte_level_bytes("Ġa") == b" a"
    assert byte_level_bytes("日本") == "日本".encode()


@pytest.mark.parametrize(
    ("token", "value"), [("<0x0A>", b"\n"), ("<0xff>", b"\xff"), ("<0x0>", None), ("x<0x0A>", None)]
)
def test_a_byte_token_is_recognised_by_its_form(token: str, value: bytes | None) -> None:
    assert byte_token_value(token) == value
