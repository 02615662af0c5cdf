"""Models split over several GGUF files: how the parts are named, and what stands for all of them.

llama.cpp writes them as ``NAME-00001-of-0000N.gguf`` and opens the first, in whose folder the others lie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.core.errors import ModelIncompatible

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True)
class SplitName:
    """The name of part ``number`` (counted from 1) of ``count``; ``stem`` may hold folders."""

    stem: str
    number: int
    count: int
    suffix: str

    def part(self, number: int) -> str:
        return f"{self.stem}-{number:05}-of-{self.count:05}{self.suffix}"

    @property
    def parts(self) -> list[str]:
        """The names of all parts in order."""
        return [self.part(number) for number in range(1, self.count + 1)]


def split_name(filename: str) -> SplitName | None:
    """What the name of a part says; None for a whole file, which ``-00001-of-00001`` names too."""
    match = _NAME.fullmatch(filename)
    if match is None or int(match["count"]) < 2:
        return None
    return SplitName(match["stem"], int(match["number"]), int(match["count"]), match["suffix"])


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files of a model by its first one, whether they exist or not; that one alone for a whole model."""
    name = split_name(path.name)
    if name is None or name.number != 1:
        return (path,)
    return tuple(path.with_name(part) for part in name.parts)


def combined_digest(part_digests: Sequence[str]) -> str:
    """What stands for the content of all parts: the SHA-256 of their digests in hex, one a line.

    One file's is its own digest.
    """
    if len(part_digests) == 1:
        return part_digests[0]
    listing = "".join(f"{digest}\n" for digest in part_digests)
    return hashlib.sha256(listing.encode()).hexdigest()


def not_the_first(number: int, count: int, first: str) -> ModelIncompatible:
    """The error for a path that names part ``number`` of ``count``, where ``first`` is the one to name."""
    return ModelIncompatible(
        f"This file is part {number} of {count} of a model",
        details={"format": "gguf", "part": number, "parts": count},
        suggestion=f"Name the first part: {first}",
    )


def part_missing(name: str) -> ModelIncompatible:
    """The error for a model one of whose files is not beside the first."""
    return ModelIncompatible(
        f"A part of the model is missing: {name}",
        details={"format": "gguf", "missing": name},
        suggestion="Fetch the model again, or put all its parts into one folder",
    )
