"""A byte-level BPE tokenizer (``tokenizer.json`` of the ``tokenizers`` library) from tokens and merges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rbee.models.pretokenizers import PreTokenizer
from rbee.models.special_tokens import SpecialToken
from rbee.models.token_table import TokenTable, refused


def tokenizer_json(
    table: TokenTable, merges: Sequence[str], pre: PreTokenizer, special: Sequence[SpecialToken]
) -> bytes:
    """The content of a ``tokenizer.json``.

    Raises ModelIncompatible when a merge is not made of two known tokens that give a third one, or when the
    library does not accept the outcome.
    """
    vocabulary = {name: token_id for token_id, name in enumerate(table.names)}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(token, table.names[token.token_id]) for token in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*map(_split, pre.patterns), _byte_level()],
        },
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary,
            "merges": _merges(merges, vocabulary),
        },
    }
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    _check(content)
    return content


def _merges(merges: Sequence[str], vocabulary: dict[str, int]) -> list[str] | list[tuple[str, str]]:
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        # The first character belongs to the left token even if it is a space.
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or not right or any(part not in vocabulary for part in (left, right, left + right)):
            raise refused(f"the merge {merge[:60]!r} names a token that does not exist", "ggml.merges")
        pairs.setdefault((left, right))
    ambiguous = any(pair[0].startswith("#version") or " " in pair[0] + pair[1] for pair in pairs)
    # The older form, one string per merge, loads a third faster, which counts at every start of a worker.
    return list(pairs) if ambiguous else [f"{left} {right}" for left, right in pairs]


def _added_token(token: SpecialToken, name: str) -> dict[str, Any]:
    return {
        "id": token.token_id,
        "content": name,
        "single_word": False,
        "lstrip": token.strips_left,
        "rstrip": token.strips_right,
        "normalized": False,
        "special": token.is_control,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _check(content: bytes) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(content)
    except ValueError as error:
        raise refused(f"it is not accepted ({str(error)[:200]})", "ggml.tokens") from None
