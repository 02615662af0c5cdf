"""Token ids are those of llama.cpp on the same file, for the embedded model and for every kind we accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.models.gguf_file import read_gguf
from rbee.models.pretokenizers import PRE_TOKENIZER_BEHAVIOURS, SUPPORTED_PRE_TOKENIZERS
from rbee.models.text import TextModel, load_text_model
from rbee.models.vocabulary import build_vocabulary
from support.tokenizer_gguf import LlamaCpp, llama_cpp, write_tokenizer_gguf
from support.tokenizer_samples import (
    VARIED_TEXTS,
    bpe_metadata,
    sentencepiece_metadata,
    trained_sentencepiece,
    vocabulary_of,
    write_text_files,
)

pytestmark = pytest.mark.reference

MARKED_TEXTS = (
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|><|im_end|>  <|im_end|>\n\n<|im_end|>x",
    "plain <tool> and <tool><tool>, then <|im_start|> and <|endoftext|>",
    "<|im_start|",
    "<<|im_end|>>",
    " unreachable unreachable",
)
# Few, but no two behaviours give the same ids for all of them.
TELLING_TEXTS = (
    " unreachable it's 1234567 a/b\n\n  c",
    "IT'S DON'T WE'LL camelCase O'Neill's",
    "done.\n\nnext!\r\n(see below):\n- item;\n",
    "!!! ... ### ||| {{{ }}} <<< >>> ~~~ ```",
    "0 12 1234 1234567890 3.14159",
    "Привет, мир! 你好，世界！我有１２３个苹果。",
    "no\u00a0break ideographic\u3000space",
)


def text_model(gguf: Path, folder: Path) -> TextModel:
    return load_text_model(write_text_files(folder, build_vocabulary(read_gguf(gguf))))


def plain_ids(model: TextModel, text: str) -> list[int]:
    return model.encode(text, honour_control=False)


def raw_ids(model: TextModel, text: str) -> list[int]:
    return model.encode_prompt(text, raw=True) if text else []


def assert_same_ids(model: TextModel, reference: LlamaCpp, texts: tuple[str, ...]) -> None:
    for text in texts:
        assert plain_ids(model, text) == reference.tokenize(text), text
        if text:
            expected = reference.tokenize(text, special=True, add_special=True)
            assert raw_ids(model, text) == expected, text


def test_there_are_at_least_forty_varied_texts() -> None:
    assert len(set(VARIED_TEXTS)) >= 40


@pytest.mark.model
def test_the_embedded_model_has_the_ids_of_the_reference(embedded_gguf: Path, tmp_path: Path) -> None:
    model = text_model(embedded_gguf, tmp_path / "folder")
    with llama_cpp(embedded_gguf) as reference:
        assert_same_ids(model, reference, VARIED_TEXTS + MARKED_TEXTS)
        for text in VARIED_TEXTS:
            ids = plain_ids(model, text)
            decoder = model.decoder()
            ours = "".join(map(decoder.feed, ids)) + decoder.flush()
            assert ours == reference.detokenize(ids), text


@pytest.mark.model
def test_a_conversation_of_the_embedded_model_has_the_ids_of_the_reference(
    embedded_gguf: Path, tmp_path: Path
) -> None:
    model = text_model(embedded_gguf, tmp_path / "folder")
    user = {"role": "user", "content": "Write a short story about a bee."}
    system = {"role": "system", "content": "Answer in one line."}
    with llama_cpp(embedded_gguf) as reference:
        for messages in ([user], [system, user]):
            rendered = reference.apply_template(messages)
            expected = reference.tokenize(rendered, special=True, add_special=True)
            stated = messages[0]["content"] if len(messages) == 2 else None
            assert model.encode_prompt(user["content"], system=stated) == expected


def bpe_gguf(pre: str | None, path: Path) -> Path:
    metadata = bpe_metadata(pre)
    return write_tokenizer_gguf(path, metadata, pieces=len(metadata["tokenizer.ggml.tokens"]))


@pytest.mark.parametrize("pre", [*PRE_TOKENIZER_BEHAVIOURS, None])
def test_a_pre_tokenizer_cuts_like_the_reference(pre: str | None, tmp_path: Path) -> None:
    gguf = bpe_gguf(pre, tmp_path / "bpe.gguf")
    with llama_cpp(gguf) as reference:
        assert_same_ids(text_model(gguf, tmp_path / "folder"), reference, VARIED_TEXTS + MARKED_TEXTS)


@pytest.mark.parametrize("pre", sorted(set(SUPPORTED_PRE_TOKENIZERS) - set(PRE_TOKENIZER_BEHAVIOURS)))
def test_another_name_of_a_pre_tokenizer_means_the_same_to_the_reference(pre: str, tmp_path: Path) -> None:
    gguf = bpe_gguf(pre, tmp_path / "bpe.gguf")
    with llama_cpp(gguf) as reference:
        assert_same_ids(text_model(gguf, tmp_path / "folder"), reference, TELLING_TEXTS)


def test_the_telling_texts_tell_the_pre_tokenizers_apart(tmp_path: Path) -> None:
    ids = set()
    for pre in PRE_TOKENIZER_BEHAVIOURS:
        model = load_text_model(write_text_files(tmp_path / pre, vocabulary_of(bpe_metadata(pre))))
        ids.add(tuple(tuple(raw_ids(model, text)) for text in TELLING_TEXTS))
    assert len(ids) == len(PRE_TOKENIZER_BEHAVIOURS)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("add_space_prefix", [True, False])
@pytest.mark.parametrize("name", ["test", "Phi-3 test"])
def test_a_sentencepiece_vocabulary_has_the_ids_of_the_reference(
    model_type: str, add_space_prefix: bool, name: str, tmp_path: Path
) -> None:
    metadata = sentencepiece_metadata(model_type, add_space_prefix=add_space_prefix)
    metadata["general.name"] = name
    gguf = write_tokenizer_gguf(
        tmp_path / "spm.gguf", metadata, pieces=len(metadata["tokenizer.ggml.tokens"])
    )
    with llama_cpp(gguf) as reference:
        assert_same_ids(text_model(gguf, tmp_path / "folder"), reference, VARIED_TEXTS + MARKED_TEXTS)


def test_a_sentencepiece_vocabulary_has_the_ids_of_the_model_it_came_from(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_proto=trained_sentencepiece("bpe"))
    metadata = sentencepiece_metadata("bpe")
    gguf = write_tokenizer_gguf(
        tmp_path / "spm.gguf", metadata, pieces=len(metadata["tokenizer.ggml.tokens"])
    )
    model = text_model(gguf, tmp_path / "folder")
    for text in VARIED_TEXTS:
        ids = plain_ids(model, text)
        assert ids == original.encode(text), text
        decoder = model.decoder()
        assert "".join(map(decoder.feed, ids)) + decoder.flush() == text == original.decode(ids)
