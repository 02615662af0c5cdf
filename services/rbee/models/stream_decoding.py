"""From token ids to text, one token at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import lru_cache

SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class StreamDecoder:
    """Decodes one generated text; the cost of a token does not depend on how many came before."""

    def __init__(self, bytes_of: Callable[[int], bytes], *, drop_leading_space: bool) -> None:
        """``bytes_of`` gives the bytes a token stands for; ``drop_leading_space`` takes one space off the
        start, which a tokenizer that puts a space in front of all text expects."""
        self._bytes_of = bytes_of
        self._drop_space = drop_leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that has become complete with this token; may be empty."""
        piece = self._bytes_of(token_id)
        if self._drop_space and piece:
            self._drop_space = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    @property
    def is_pending(self) -> bool:
        """Whether bytes of a character that is not complete yet are held back."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def with_first_space(text: str) -> str:
    return text if text.startswith((" ", SPACE_MARK)) else f" {text}"


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token in GPT-2's byte alphabet; a token with other characters is plain text."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def space_mark_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token, where U+2581 stands for a space."""
    return token.replace(SPACE_MARK, " ").encode("utf-8", "replace")


def byte_token_value(token: str) -> bytes | None:
    """The byte that a token such as ``<0x0A>`` stands for; None for any other token."""
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(found.group(1)) if found else None


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes are their own character, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
