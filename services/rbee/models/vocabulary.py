"""The vocabulary of a GGUF: its tokenizer rebuilt, its special tokens, and where generation stops.

Metadata keys are those of the GGUF specification (ggml repository, docs/gguf.md); what a key means when it is
missing is taken from llama.cpp (src/llama-vocab.cpp), the reference for such files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rbee.core.errors import ModelIncompatible
from rbee.models.bpe import tokenizer_json
from rbee.models.chat_template import ChatTemplate
from rbee.models.gguf_file import GgufFile
from rbee.models.pretokenizers import pre_tokenizer_named
from rbee.models.sentencepiece_model import sentencepiece_model
from rbee.models.special_tokens import END_OF_GENERATION, SpecialToken
from rbee.models.token_names import text_of_name
from rbee.models.token_table import (
    TokenTable,
    TokenType,
    flag_of,
    read_token_table,
    refused,
    text_of,
    texts_of,
    token_id_of,
)

# What llama.cpp takes for a "llama" tokenizer whose file names no special tokens.
_DEFAULT_UNKNOWN, _DEFAULT_BOS, _DEFAULT_EOS = 0, 1, 2


class TokenizerKind(StrEnum):
    BPE = "bpe"
    SENTENCEPIECE = "sentencepiece"


# Names of ``tokenizer.ggml.model``.
_KINDS = {"gpt2": TokenizerKind.BPE, "llama": TokenizerKind.SENTENCEPIECE}
_FILES = {TokenizerKind.BPE: "tokenizer.json", TokenizerKind.SENTENCEPIECE: "tokenizer.model"}


@dataclass(frozen=True)
class Vocabulary:
    """All that lies between text and token ids. ``tokens`` are unique strings, index = id."""

    kind: TokenizerKind
    tokens: list[str]
    special_tokens: tuple[SpecialToken, ...]
    bos_token_id: int | None
    eos_token_id: int | None
    unknown_token_id: int | None
    stop_token_ids: tuple[int, ...]
    add_bos: bool
    add_space_prefix: bool
    chat_template: str | None
    tokenizer_file: bytes

    def write(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` or ``tokenizer.model``, ``tokenizer_config.json``, and
        ``chat_template.jinja`` if the model has one."""
        (folder / _FILES[self.kind]).write_bytes(self.tokenizer_file)
        config = json.dumps(self._tokenizer_config(), ensure_ascii=False, indent=1)
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
        if self.chat_template is not None:
            # Bytes, because a text file would change the template's line ends on some systems.
            (folder / "chat_template.jinja").write_bytes(self.chat_template.encode())

    def _tokenizer_config(self) -> dict[str, object]:
        """The file of the same name as Hugging Face's libraries write it, so far as it is read here."""
        named = {"bos": self.bos_token_id, "eos": self.eos_token_id, "unk": self.unknown_token_id}
        return {
            "add_bos_token": self.add_bos,
            "added_tokens_decoder": {
                str(token.token_id): {
                    "content": token.text,
                    "lstrip": token.strips_left,
                    "rstrip": token.strips_right,
                    "special": token.is_control,
                }
                for token in self.special_tokens
            },
            **{
                f"{name}_token": text_of_name(self.tokens[i], i) for name, i in named.items() if i is not None
            },
        }


def build_vocabulary(gguf: GgufFile) -> Vocabulary:
    """Raises ModelIncompatible for a tokenizer or pre-tokenizer that is not supported, by its name, and for
    metadata that contradicts itself."""
    kind = _kind(gguf)
    table = read_token_table(gguf)
    sentencepiece = kind is TokenizerKind.SENTENCEPIECE
    bos_id = _special_id(gguf, table, "bos", _DEFAULT_BOS if sentencepiece else None)
    eos_id = _eos_id(gguf, table, kind)
    unknown_id = _special_id(gguf, table, "unknown", _DEFAULT_UNKNOWN if sentencepiece else None)
    special = _special_tokens(gguf, table)
    if sentencepiece:
        prefix = flag_of(gguf, "ggml.add_space_prefix")
        add_space_prefix = True if prefix is None else prefix
        add_bos_by_default = True
        tokenizer_file = sentencepiece_model(
            table, unknown_id=unknown_id, bos_id=bos_id, eos_id=eos_id, add_space_prefix=add_space_prefix
        )
    else:
        pre = pre_tokenizer_named(text_of(gguf, "ggml.pre") or "default")
        add_space_prefix, add_bos_by_default = False, pre.add_bos
        tokenizer_file = tokenizer_json(table, _merges(gguf), pre, special)
    return Vocabulary(
        kind=kind,
        tokens=list(table.names),
        special_tokens=special,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        unknown_token_id=unknown_id,
        stop_token_ids=_stop_ids(gguf, table, eos_id),
        add_bos=_add_bos(gguf, bos_id, add_bos_by_default),
        add_space_prefix=add_space_prefix,
        chat_template=_chat_template(gguf),
        tokenizer_file=tokenizer_file,
    )


def _kind(gguf: GgufFile) -> TokenizerKind:
    name = text_of(gguf, "ggml.model")
    if name is None:
        raise refused("the file names no tokenizer", "ggml.model")
    if name not in _KINDS:
        raise ModelIncompatible(
            f"Tokenizer '{name[:100]}' is not supported",
            details={"format": "tokenizer.ggml.model", "found": name[:100], "supported": sorted(_KINDS)},
            suggestion="Use a model with a gpt2 (byte-level BPE) or llama (SentencePiece) tokenizer",
        )
    return _KINDS[name]


def _merges(gguf: GgufFile) -> list[str]:
    merges = texts_of(gguf, "ggml.merges")
    if not merges:
        raise refused("a gpt2 tokenizer needs merges", "ggml.merges")
    return merges


def _special_id(gguf: GgufFile, table: TokenTable, name: str, default: int | None) -> int | None:
    found = token_id_of(gguf, f"ggml.{name}_token_id", len(table))
    if found is None and default is not None and default < len(table):
        return default
    return found


def _eos_id(gguf: GgufFile, table: TokenTable, kind: TokenizerKind) -> int | None:
    found = _special_id(gguf, table, "eos", _DEFAULT_EOS)
    stated = gguf.get("tokenizer.ggml.eos_token_id") is not None
    # Token 2 of a BPE vocabulary is often an ordinary character, at which no text must end.
    if found is None or stated or kind is TokenizerKind.SENTENCEPIECE:
        return found
    return found if table.types[found] is TokenType.CONTROL else None


def _add_bos(gguf: GgufFile, bos_id: int | None, default: bool) -> bool:
    stated = flag_of(gguf, "ggml.add_bos_token")
    if stated and bos_id is None:
        raise refused("it adds a beginning-of-text token but names none", "ggml.bos_token_id")
    return bos_id is not None and (default if stated is None else stated)


def _stop_ids(gguf: GgufFile, table: TokenTable, eos_id: int | None) -> tuple[int, ...]:
    stops = {eos_id} | {token_id_of(gguf, f"ggml.{name}_token_id", len(table)) for name in ("eot", "eom")}
    stops |= {token_id for token_id, text in enumerate(table.texts) if text in END_OF_GENERATION}
    return tuple(sorted(token_id for token_id in stops if token_id is not None))


def _special_tokens(gguf: GgufFile, table: TokenTable) -> tuple[SpecialToken, ...]:
    # Phi-3 drops the line end after its markers; its files do not say so, and llama.cpp goes by the name too.
    name = str(gguf.get("general.name", "")).lower()
    strips = "phi-3" in name or "phi3" in name
    special = table.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return tuple(
        SpecialToken(
            token_id=token_id,
            text=table.texts[token_id],
            is_control=table.types[token_id] is not TokenType.USER_DEFINED,
            strips_right=strips and table.texts[token_id] not in ("<unk>", "<s>", "<|endoftext|>"),
        )
        for token_id in special
        if table.texts[token_id]
    )


def _chat_template(gguf: GgufFile) -> str | None:
    """The default template, else the only named one; checked for its syntax."""
    source = text_of(gguf, "chat_template") or text_of(gguf, "chat_template.default")
    if not source:
        names = texts_of(gguf, "chat_templates")
        source = text_of(gguf, f"chat_template.{names[0]}") if len(names) == 1 else None
    if not source:
        return None
    ChatTemplate(source)
    return source
