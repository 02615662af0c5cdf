"""CTranslate2 folders that others converted: their tokenizer, their settings, and what cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from rbee.core.errors import ModelIncompatible
from rbee.models.text import TextModel, load_text_model
from support.tokenizer_samples import (
    VARIED_TEXTS,
    bpe_metadata,
    trained_sentencepiece,
    vocabulary_of,
    write_text_files,
)

ENGINE_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "layer_norm_epsilon": 1e-5}
MARKED = "<s>[INST] hi <|im_end|>  there</s> you"


def unigram(pieces: str = "metaspace-first") -> Tokenizer:
    """A SentencePiece-style tokenizer.json, with the space in front written in one of the known ways."""
    source = SentencePieceProcessor(model_proto=trained_sentencepiece("unigram"))
    vocab = [(source.id_to_piece(i), source.get_score(i)) for i in range(source.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    control = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    if pieces == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = pieces.removeprefix("metaspace-")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return tokenizer


def tokens_of(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.id_to_token(token_id) for token_id in range(tokenizer.get_vocab_size())]


def write_folder(folder: Path, tokens: list[str], **files: Any) -> Path:
    """Keyword arguments are JSON files by their names without the extension; None leaves one out."""
    contents = {"vocabulary": tokens, "config": ENGINE_CONFIG, **files}
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_tokenizers_folder(folder: Path, tokenizer: Tokenizer, **files: Any) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return write_folder(folder, tokens_of(tokenizer), **files)


def decoded(model: TextModel, ids: list[int]) -> str:
    decoder = model.decoder()
    return "".join(map(decoder.feed, ids)) + decoder.flush()


@pytest.mark.parametrize("pieces", ["metaspace-first", "metaspace-always", "metaspace-never", "prepend"])
def test_a_sentencepiece_style_tokenizer_json_gives_the_ids_of_its_library(
    pieces: str, tmp_path: Path
) -> None:
    tokenizer = unigram(pieces)
    model = load_text_model(write_tokenizers_folder(tmp_path, tokenizer))
    for text in (*VARIED_TEXTS, MARKED):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert model.encode(text, honour_control=True) == expected, text
        tokenizer.encode_special_tokens = True
        assert (
            model.encode(text, honour_control=False) == tokenizer.encode(text, add_special_tokens=False).ids
        )
        tokenizer.encode_special_tokens = False


@pytest.mark.parametrize("pieces", ["metaspace-first", "metaspace-always", "prepend"])
def test_a_sentencepiece_style_tokenizer_json_decodes_like_its_library(pieces: str, tmp_path: Path) -> None:
    tokenizer = unigram(pieces)
    model = load_text_model(write_tokenizers_folder(tmp_path, tokenizer))
    for text in VARIED_TEXTS:
        ids = model.encode(text, honour_control=False)
        assert decoded(model, ids) == tokenizer.decode(ids)


def test_a_byte_level_tokenizer_json_is_read(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(bpe_metadata("qwen2"))
    (tmp_path / "tokenizer.json").write_bytes(vocabulary.tokenizer_file)
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    model = load_text_model(write_folder(tmp_path, vocabulary.tokens, config=config))
    ours = load_text_model(write_text_files(tmp_path / "ours", vocabulary))
    for text in VARIED_TEXTS:
        assert model.encode(text, honour_control=True) == ours.encode(text, honour_control=True)
    assert {0, vocabulary.tokens.index("<|im_end|>")} <= model.stop_token_ids
    assert (model.block_count, model.has_chat_template) == (None, False)


def test_a_tokenizer_model_is_read_with_the_tokens_added_beside_it(tmp_path: Path) -> None:
    content = trained_sentencepiece("bpe")
    original = SentencePieceProcessor(model_proto=content)
    size = original.vocab_size()
    (tmp_path / "tokenizer.model").write_bytes(content)
    tokens = [original.id_to_piece(token_id) for token_id in range(size)] + ["<|added|>", "<pad-to-8>"]
    added = {"1": {"content": "<s>", "special": True}, str(size): {"content": "<|added|>", "special": True}}
    settings = {
        "added_tokens_decoder": added,
        "eos_token": {"content": "<|added|>"},
        "model_max_length": 4096,
    }
    model = load_text_model(write_folder(tmp_path, tokens, tokenizer_config=settings))
    assert model.encode_prompt("a b") == [1, *original.encode("a b")]
    assert model.encode("a<|added|>", honour_control=True) == [*original.encode("a"), size]
    assert decoded(model, [*original.encode("a b"), size]) == "a b"
    assert model.stop_token_ids == {2, size}
    assert model.context_length == 4096


def test_a_tokenizer_model_alone_has_its_own_control_tokens(tmp_path: Path) -> None:
    content = trained_sentencepiece("bpe")
    original = SentencePieceProcessor(model_proto=content)
    (tmp_path / "tokenizer.model").write_bytes(content)
    tokens = [original.id_to_piece(token_id) for token_id in range(original.vocab_size())]
    folder = write_folder(tmp_path, tokens)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}[{{ messages[0].content }}]<|im_end|>")
    model = load_text_model(folder)
    ids = model.encode_prompt("hi </s>")
    assert [ids[0], ids[-1]] == [1, original.piece_to_id("<|im_end|>")]
    assert ids.count(1) == 1
    assert 2 not in ids
    assert {2, original.piece_to_id("<|im_end|>")} <= model.stop_token_ids


@pytest.mark.parametrize("stated", [None, True, False])
def test_the_beginning_of_text_is_added_as_the_folder_says(stated: bool | None, tmp_path: Path) -> None:
    tokenizer = unigram()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    settings = None if stated is None else {"add_bos_token": stated}
    model = load_text_model(write_tokenizers_folder(tmp_path, tokenizer, tokenizer_config=settings))
    assert (model.encode_prompt("hi")[0] == 1) is (stated is not False)


@pytest.mark.parametrize(
    "template",
    [
        "T:{{ messages[0].content }}",
        [{"name": "default", "template": "T:{{ messages[0].content }}"}, {"name": "x", "template": "X"}],
        [{"name": "only", "template": "T:{{ messages[0].content }}"}],
    ],
)
def test_the_chat_template_may_be_in_the_tokenizer_config(template: Any, tmp_path: Path) -> None:
    settings = {"chat_template": template}
    model = load_text_model(write_tokenizers_folder(tmp_path, unigram(), tokenizer_config=settings))
    assert model.has_chat_template
    assert decoded(model, model.encode_prompt("hi")) == "T:hi"


@pytest.mark.parametrize("ids", [3, [3, 4]])
def test_the_generation_config_may_name_more_ends(ids: Any, tmp_path: Path) -> None:
    folder = write_tokenizers_folder(tmp_path, unigram(), generation_config={"eos_token_id": ids})
    assert {2, 3} <= load_text_model(folder).stop_token_ids


def test_a_vocabulary_may_be_a_text_file(tmp_path: Path) -> None:
    tokenizer = unigram()
    folder = write_tokenizers_folder(tmp_path, tokenizer, vocabulary=None)
    (folder / "vocabulary.txt").write_text("\n".join(tokens_of(tokenizer)) + "\n", encoding="utf-8")
    assert load_text_model(folder).tokens == tokens_of(tokenizer)


def foreign(folder: Path) -> Path:
    return write_tokenizers_folder(folder, unigram())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not JSON"),
        ("vocabulary.json", None),
        ("vocabulary.json", "[]"),
        ("vocabulary.json", "[1, 2]"),
        ("vocabulary.json", '{"a": 1}'),
        ("vocabulary.json", '["<unk>", "<s>", "</s>"]'),
        ("config.json", None),
        ("config.json", "[]"),
        ("config.json", "{"),
        ("tokenizer_config.json", "x"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": 1000000}'),
        ("generation_config.json", '{"eos_token_id": ["x"]}'),
        ("chat_template.jinja", "{% if %}"),
        ("rbee.json", '{"stop_token_ids": null}'),
        ("rbee.json", '{"stop_token_ids": [], "bos_token_id": 99999}'),
    ],
)
def test_a_folder_with_a_missing_or_broken_file_is_refused(
    name: str, content: str | None, tmp_path: Path
) -> None:
    folder = foreign(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ModelIncompatible):
        load_text_model(folder)


@pytest.mark.parametrize("config", ['{"added_tokens_decoder": [1]}', '{"added_tokens_decoder": {"x": {}}}'])
def test_malformed_added_tokens_are_refused(config: str, tmp_path: Path) -> None:
    content = trained_sentencepiece("bpe")
    (tmp_path / "tokenizer.model").write_bytes(content)
    write_folder(tmp_path, ["<unk>"] * 2000)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ModelIncompatible, match="added tokens"):
        load_text_model(tmp_path)


def test_a_broken_tokenizer_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece("bpe")[:1000])
    write_folder(tmp_path, ["<unk>"])
    with pytest.raises(ModelIncompatible, match=r"tokenizer\.model"):
        load_text_model(tmp_path)


def test_a_tokenizer_that_decodes_in_an_unknown_way_is_refused_by_its_name(tmp_path: Path) -> None:
    tokenizer = unigram()
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelIncompatible, match="WordPiece"):
        load_text_model(write_tokenizers_folder(tmp_path, tokenizer))
