"""Texts that ship with the package, as token ids: some to calibrate on, others to measure quality on.

Each kind (``prose``, ``code``, …) is one file in ``texts/calibration`` or ``texts/held_out``; the two share
no text. ``chat`` holds turns, each begun by ``system:``, ``user:`` or ``assistant:``, and is put into the
model's own chat template.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from importlib.resources import files

from rbee.core.errors import ModelIncompatible
from rbee.models.chat_template import ChatTemplate
from rbee.models.text import TextModel

_TURN = re.compile(r"^(system|user|assistant): ", re.MULTILINE)
_CHAT = "chat"
# Some templates name the day; a model must not be converted differently tomorrow.
_DAY = datetime(2024, 1, 1)


class SampleSet(StrEnum):
    CALIBRATION = "calibration"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Exchange:
    """A question with its answer."""

    system: str | None
    user: str
    assistant: str


def sample_texts(which: SampleSet) -> dict[str, str]:
    """The texts of a set by kind, in the order of their names."""
    folder = files("rbee.models") / "texts" / which.value
    found = {entry.name: entry.read_text(encoding="utf-8") for entry in folder.iterdir()}
    return {name.removesuffix(".txt"): found[name] for name in sorted(found) if name.endswith(".txt")}


def digest_of(which: SampleSet) -> str:
    """The SHA-256 of all texts of a set, in hex."""
    whole = "\0".join(f"{kind}\0{text}" for kind, text in sample_texts(which).items())
    return hashlib.sha256(whole.encode()).hexdigest()


def sample_ids(which: SampleSet, model: TextModel, longest: int) -> dict[str, list[list[int]]]:
    """Token ids of every text of a set by kind, each cut to ``longest``; without texts that give no token."""
    model = _without_calendar(model)
    found = {}
    for kind, text in sample_texts(which).items():
        encoded = _encode_chat(model, text) if kind == _CHAT else [model.encode_prompt(text, raw=True)]
        found[kind] = [ids[:longest] for ids in encoded if ids]
    return {kind: texts for kind, texts in found.items() if texts}


def exchanges(text: str) -> Iterator[Exchange]:
    """The exchanges of a text of turns; a system text belongs to the first question after it."""
    pieces = _TURN.split(text)[1:]
    system, user = None, ""
    for role, said in zip(pieces[::2], pieces[1::2], strict=True):
        if role == "system":
            system = said.strip()
        elif role == "user":
            user = said.strip()
        else:
            yield Exchange(system, user, said.strip())
            system = None


def _encode_chat(model: TextModel, text: str) -> list[list[int]]:
    encoded = []
    for exchange in exchanges(text):
        try:
            prompt = model.encode_prompt(exchange.user, exchange.system)
        except ModelIncompatible:
            # A template that fails is reported where the model is used.
            prompt = model.encode_prompt(f"{exchange.system or ''}\n\n{exchange.user}\n\n", raw=True)
        encoded.append(prompt + model.encode(exchange.assistant, honour_control=False))
    return encoded


def _without_calendar(model: TextModel) -> TextModel:
    if model.template is None:
        return model
    template = ChatTemplate(model.template.source, model.settings.special_texts, now=lambda: _DAY)
    return replace(model, template=template)
