"""The token list of a GGUF, checked: texts, types, scores, and names that are unique for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import GgufFile
from rbee.models.special_tokens import END_OF_GENERATION
from rbee.models.token_names import unique_names

# Scores are 32-bit floats in every tokenizer format; infinities and NaN have no place in an order.
_LARGEST = 3.4e38


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``; the numbers are those of sentencepiece_model.proto as well."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_FILL_IN_THE_MIDDLE = """
<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
"""
_MARKERS = END_OF_GENERATION | frozenset(_FILL_IN_THE_MIDDLE.split())


@dataclass(frozen=True)
class TokenTable:
    """Parallel lists, index = token id. ``names`` are the texts made unique; ``scores`` are 0 without any."""

    texts: Sequence[str]
    names: Sequence[str]
    types: Sequence[TokenType]
    scores: Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)

    def ids_of_type(self, *types: TokenType) -> list[int]:
        return [token_id for token_id, kind in enumerate(self.types) if kind in types]


def refused(reason: str, key: str) -> ModelIncompatible:
    """The error for tokenizer metadata that cannot be used; ``key`` is without the prefix ``tokenizer.``."""
    return ModelIncompatible(
        f"The model's tokenizer cannot be used: {reason}",
        details={"format": f"tokenizer.{key}"},
        suggestion="Use another file of the model, or another model",
    )


def read_token_table(gguf: GgufFile) -> TokenTable:
    """Raises ModelIncompatible for missing lists, wrong types, and lists that differ in length."""
    texts = texts_of(gguf, "ggml.tokens")
    if not texts:
        raise refused("it has no tokens", "ggml.tokens")
    types = [_type_of(text, kind) for text, kind in zip(texts, _types(gguf, len(texts)), strict=True)]
    return TokenTable(texts, unique_names(texts), types, _scores(gguf, len(texts)))


def texts_of(gguf: GgufFile, key: str) -> list[str]:
    """A list of strings; empty when the key is missing."""
    values = gguf.get(f"tokenizer.{key}", [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise refused(f"{key} is not a list of strings", key)
    return values


def token_id_of(gguf: GgufFile, key: str, size: int) -> int | None:
    """An id within the vocabulary, or None when the file has none."""
    value = gguf.get(f"tokenizer.{key}")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise refused(f"{key} is not an id below {size}", key)
    return value


def flag_of(gguf: GgufFile, key: str) -> bool | None:
    value = gguf.get(f"tokenizer.{key}")
    if value is not None and not isinstance(value, bool):
        raise refused(f"{key} is not a truth value", key)
    return value


def text_of(gguf: GgufFile, key: str) -> str | None:
    value = gguf.get(f"tokenizer.{key}")
    if value is not None and not isinstance(value, str):
        raise refused(f"{key} is not a string", key)
    return value


def _types(gguf: GgufFile, size: int) -> list[int]:
    values = gguf.get("tokenizer.ggml.token_type")
    if values is None:
        return [TokenType.NORMAL] * size
    if not isinstance(values, list) or len(values) != size:
        raise refused(f"there are {size} tokens, but not as many token types", "ggml.token_type")
    known = set(TokenType)
    if not all(isinstance(value, int) and value in known for value in values):
        raise refused("it has a token of an unknown type", "ggml.token_type")
    return values


def _type_of(text: str, kind: int) -> TokenType:
    # Such markers are control tokens whatever the file says, as in llama.cpp (src/llama-vocab.cpp): older
    # converters left them as plain text.
    if text in _MARKERS:
        return TokenType.CONTROL
    return TokenType(kind)


def _scores(gguf: GgufFile, size: int) -> list[float]:
    values = gguf.get("tokenizer.ggml.scores")
    if values is None:
        return [0.0] * size
    if not isinstance(values, list) or len(values) != size:
        raise refused(f"there are {size} tokens, but not as many scores", "ggml.scores")
    if not all(isinstance(value, int | float) and abs(value) <= _LARGEST for value in values):
        raise refused("it has a score that is not a number", "ggml.scores")
    return values
