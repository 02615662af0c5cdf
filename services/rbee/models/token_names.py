"""Names for tokens that the engine can tell apart, where a vocabulary holds the same text more than once.

CTranslate2 takes tokens as strings, so that each needs a string of its own. A repeated or empty text gets a
suffix of a noncharacter and the token's id, which ``text_of_name`` takes off again.
"""

from __future__ import annotations

from collections.abc import Sequence

# Noncharacters are for a program's inner use only (Unicode, section 23.7), so that no text ends like this.
_MARK = "\U0010ffff"


def unique_names(texts: Sequence[str]) -> list[str]:
    """One name per token, index = id; the first token of a text keeps the text as its name."""
    taken: set[str] = set()
    names = []
    for token_id, text in enumerate(texts):
        name = text
        while not name or name in taken:
            name = f"{name}{_MARK}{token_id}"
        taken.add(name)
        names.append(name)
    return names


def text_of_name(name: str, token_id: int) -> str:
    """The text of a token by its name."""
    if _MARK not in name:
        return name
    suffix = f"{_MARK}{token_id}"
    while name.endswith(suffix):
        name = name.removesuffix(suffix)
    return name
