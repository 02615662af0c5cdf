"""Tokens that stand for themselves in text: finding them, and keeping them out of what a user wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Whitespace as the C locale knows it, which is what llama.cpp strips beside a token.
_SPACE = " \t\n\v\f\r"

# Private-use characters stand in for control texts; there are more of them than a prompt has characters.
_PLACEHOLDERS = range(0x10FFFD, 0xFFFFF, -1)


# Texts of tokens that end a turn, a completion or a file, from llama.cpp (src/llama-vocab.cpp).
_END_TEXTS = """
<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS]
<|end_of_text|> <end_of_utterance> <eos> <｜end▁of▁sentence｜> <|fim_pad|> <fim-pad> <fim_pad> <PAD>
[PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
END_OF_GENERATION = frozenset(_END_TEXTS.split())


@dataclass(frozen=True)
class SpecialToken:
    """A token that is matched in the text before the text itself is tokenised.

    A control token is matched only where control text is honoured, and has no text of its own in output; any
    other special token is ordinary text that always becomes that one token.
    """

    token_id: int
    text: str
    is_control: bool
    strips_left: bool = False
    strips_right: bool = False


class SpecialTokenSplitter:
    """Cuts text at special tokens as llama.cpp does: the longest token first, each over the whole text."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        usable = (token for token in tokens if token.text)
        self._tokens = sorted(usable, key=lambda token: (-len(token.text.encode()), token.token_id))

    def split(self, text: str, *, honour_control: bool) -> list[str | int]:
        """The text as fragments: plain text (never empty) and token ids."""
        fragments: list[str | int] = [text] if text else []
        characters = set(text)
        for token in self._tokens:
            if token.is_control and not honour_control:
                continue
            if token.text[0] in characters and token.text in text:
                fragments = [piece for fragment in fragments for piece in _cut(fragment, token)]
        return fragments

    def disarm(self, text: str, *, avoiding: str) -> tuple[str, dict[str, str]]:
        """Puts a placeholder where ``text`` contains a control token's text, so that it is not matched.

        Placeholders are single characters found neither in ``text`` nor in ``avoiding``. Also returns what
        each of them stands for, for ``rearm``.
        """
        taken = set(text) | set(avoiding)
        free = (chr(code) for code in _PLACEHOLDERS if chr(code) not in taken)
        meanings: dict[str, str] = {}
        for token in self._tokens:
            if token.is_control and token.text in text:
                placeholder = next(free)
                meanings[placeholder] = token.text
                text = text.replace(token.text, placeholder)
        return text, meanings


def rearm(text: str, meanings: dict[str, str]) -> str:
    """Gives disarmed text back as it was written; to be applied to plain fragments only."""
    for placeholder, meaning in meanings.items():
        text = text.replace(placeholder, meaning)
    return text


def _cut(fragment: str | int, token: SpecialToken) -> Iterable[str | int]:
    if isinstance(fragment, int):
        yield fragment
        return
    pieces = fragment.split(token.text)
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        if token.strips_right and index > 0:
            piece = piece.lstrip(_SPACE)
        if token.strips_left and index < last:
            piece = piece.rstrip(_SPACE)
        if piece:
            yield piece
        if index < last:
            yield token.token_id
