"""What a model folder says about itself: vocabulary, special ids, limits, chat template.

A folder of ours has all of it in ``rbee.json``. Another CTranslate2 folder has the engine's ``config.json``
and perhaps the files of Hugging Face's libraries (``tokenizer_config.json``, ``generation_config.json``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbee.models.special_tokens import END_OF_GENERATION, SpecialToken
from rbee.models.tokenizer_files import unusable

# For a folder that does not say how long a text its model takes; every model in use takes this much.
DEFAULT_CONTEXT_LENGTH = 2048
_SPECIAL_TEXTS = ("bos_token", "eos_token", "unk_token", "pad_token")
# A "no limit" in tokenizer_config.json is a huge number.
_LONGEST_CONTEXT = 2**24


@dataclass(frozen=True)
class FolderSettings:
    """``is_ours`` tells that nothing is left to find out from the tokenizer."""

    is_ours: bool
    tokens: list[str]
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    special_texts: dict[str, str]
    bos_token_id: int | None
    stop_token_ids: frozenset[int]
    add_bos: bool | None
    context_length: int
    block_count: int | None

    def completed(self, special: Iterable[SpecialToken], tokenizer_adds_bos: bool | None) -> FolderSettings:
        """With what only the tokenizer of a folder that is not ours can tell."""
        if self.is_ours:
            return self
        stops = {token.token_id for token in special if token.text in END_OF_GENERATION}
        # A SentencePiece model does not say; models of that kind expect their beginning-of-text token.
        says = tokenizer_adds_bos if tokenizer_adds_bos is not None else True
        add_bos = says if self.add_bos is None else self.add_bos
        return replace(self, stop_token_ids=self.stop_token_ids | stops, add_bos=add_bos)


def read_folder_settings(folder: Path) -> FolderSettings:
    """Raises ModelIncompatible for files that are missing or malformed."""
    ours = _read_object(folder / "rbee.json")
    tokenizer_config = _read_object(folder / "tokenizer_config.json") or {}
    tokens = _vocabulary(folder)
    template = _chat_template(folder, tokenizer_config)
    special_texts = _special_texts(tokenizer_config)
    if ours is not None:
        return FolderSettings(
            is_ours=True,
            tokens=tokens,
            tokenizer_config=tokenizer_config,
            chat_template=template,
            special_texts=special_texts,
            bos_token_id=_optional_id(ours.get("bos_token_id"), len(tokens)),
            stop_token_ids=_ids(ours.get("stop_token_ids"), len(tokens)),
            add_bos=ours.get("add_bos") is True,
            context_length=_positive(ours.get("context_length")) or DEFAULT_CONTEXT_LENGTH,
            block_count=_positive(ours.get("block_count")),
        )
    config = _read_object(folder / "config.json")
    if config is None:
        raise unusable("it has no config.json")
    return _foreign_settings(folder, config, tokens, tokenizer_config, template, special_texts)


def _foreign_settings(
    folder: Path,
    config: Mapping[str, Any],
    tokens: list[str],
    tokenizer_config: dict[str, Any],
    template: str | None,
    special_texts: dict[str, str],
) -> FolderSettings:
    id_of = {token: token_id for token_id, token in enumerate(tokens)}
    named = {name: _content(config.get(name)) for name in ("bos_token", "eos_token")}
    texts = {name: text for name, text in named.items() if text} | special_texts
    generation = _read_object(folder / "generation_config.json") or {}
    stops = generation.get("eos_token_id")
    stop_ids = _ids(stops if isinstance(stops, list) else [] if stops is None else [stops], len(tokens))
    stop_ids |= {id_of[text] for text in (named["eos_token"], texts.get("eos_token")) if text in id_of}
    add_bos = tokenizer_config.get("add_bos_token")
    return FolderSettings(
        is_ours=False,
        tokens=tokens,
        tokenizer_config=tokenizer_config,
        chat_template=template,
        special_texts=texts,
        bos_token_id=id_of.get(named["bos_token"] or texts.get("bos_token", "")),
        stop_token_ids=stop_ids,
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        context_length=_positive(tokenizer_config.get("model_max_length")) or DEFAULT_CONTEXT_LENGTH,
        block_count=None,
    )


def _vocabulary(folder: Path) -> list[str]:
    try:
        if (folder / "vocabulary.json").exists():
            tokens = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        else:
            # One token a line; only a line feed ends a line, so that other separators can be tokens.
            tokens = (folder / "vocabulary.txt").read_bytes().decode().removesuffix("\n").split("\n")
    except (OSError, ValueError):
        raise unusable("it has no readable vocabulary.json or vocabulary.txt") from None
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise unusable("its vocabulary is not a list of tokens")
    return tokens


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_bytes().decode()
        except (OSError, ValueError):
            raise unusable("its chat_template.jinja is not readable text") from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
    return template if isinstance(template, str) and template else None


def _special_texts(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: _content(tokenizer_config.get(name)) for name in _SPECIAL_TEXTS}
    return {name: text for name, text in texts.items() if text}


def _content(value: Any) -> str | None:
    """A special token is written as its text, or as an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise unusable(f"its {path.name} cannot be read") from None
    if not isinstance(content, dict):
        raise unusable(f"its {path.name} is not a JSON object")
    return content


def _optional_id(value: Any, size: int) -> int | None:
    return None if value is None else next(iter(_ids([value], size)))


def _ids(values: Any, size: int) -> frozenset[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < size for value in values):
        raise unusable("it names token ids that are not in its vocabulary")
    return frozenset(values)


def _positive(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < _LONGEST_CONTEXT else None
