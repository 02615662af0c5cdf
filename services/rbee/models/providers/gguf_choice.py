"""Which GGUF file of a repository a reference means, when it names a quantisation or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rbee.core.references import GGUF_SUFFIX
from rbee.models.split_files import split_name

PREFERENCE = (
    "Q4_K_M",
    "Q5_K_M",
    "Q4_K_S",
    "Q5_K_S",
    "Q6_K",
    "Q8_0",
    "Q4_1",
    "Q4_0",
    "Q5_1",
    "Q5_0",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q2_K",
    "F16",
    "BF16",
    "F32",
)
"""The order of the contract for a reference without a quantisation."""

# A vision projector or an importance matrix lies beside the model in the same format and is no model.
_COMPANION = re.compile(r"(^|[-._])(mmproj|imatrix)([-._]|$)", re.IGNORECASE)
# What names a quantisation at all; any other word of a file name must not pass for one.
_QUANTISATION = re.compile(
    r"(?:[A-Z0-9]+-)*(?:I?Q\d|TQ\d|BF16|FP?16|FP?32|F64|MXFP\d|NVFP\d)[A-Z0-9_]*(?:-[A-Z0-9_]+)*",
    re.IGNORECASE,
)
_SHOWN = 8


class NoSuchGguf(LookupError):
    """No file of the repository is meant by the reference; the text says what there is instead."""


def choose_gguf(filenames: Iterable[str], variant: str) -> str:
    """The file of a quantisation (any letter case), or the first of ``PREFERENCE`` for an empty ``variant``.

    A model that is split over several files is named by its first part, and is a candidate when all are
    there. A repository with a single model of no known name means that one. Of several models of one
    quantisation a whole file is taken before a split one, then the one with the shortest path.

    Raises:
        NoSuchGguf: nothing fits.
    """
    found = sorted({name for name in filenames if name.lower().endswith(GGUF_SUFFIX)})
    candidates = [name for name in found if not _is_companion(name) and _is_model(name, set(found))]
    for wanted in [variant] if variant else PREFERENCE:
        matching = [name for name in candidates if _has_quantisation(name, wanted)]
        if matching:
            return min(matching, key=lambda name: (split_name(name) is not None, len(name), name))
    if not variant and len(candidates) == 1:
        return candidates[0]
    raise NoSuchGguf(_explain(found, candidates, variant))


def named_parts(filenames: Iterable[str], name: str) -> list[str]:
    """The files of the model that ``name`` names: itself, or all parts by the first.

    Raises:
        NoSuchGguf: it is not there, or another part than the first, or parts are missing.
    """
    there = set(filenames)
    if name not in there:
        raise NoSuchGguf("the repository has no such file")
    split = split_name(name)
    if split is None:
        return [name]
    if split.number != 1:
        raise NoSuchGguf(
            f"the file is part {split.number} of {split.count}; name the first part: {split.part(1)}"
        )
    missing = [part for part in split.parts if part not in there]
    if missing:
        raise NoSuchGguf(f"the repository lacks {len(missing)} of its parts, first {missing[0]}")
    return split.parts


def _is_model(name: str, found: set[str]) -> bool:
    """Whether the name stands for a whole model: a file that is no part, or the first of all parts."""
    split = split_name(name)
    return split is None or (split.number == 1 and found.issuperset(split.parts))


def _is_companion(name: str) -> bool:
    return _COMPANION.search(name.rpartition("/")[2]) is not None


def _has_quantisation(name: str, quantisation: str) -> bool:
    if not _QUANTISATION.fullmatch(quantisation):
        return False
    pattern = re.escape(quantisation.upper())
    if quantisation.upper() in ("F16", "F32"):  # written FP16 and FP32 as often
        pattern = f"FP?{quantisation[1:]}"
    stem = name[: -len(GGUF_SUFFIX)].upper()
    return re.search(rf"(?<![A-Z0-9]){pattern}(?![A-Z0-9_])", stem) is not None


def _explain(found: list[str], candidates: list[str], variant: str) -> str:
    if not found:
        return "the repository has no GGUF file"
    if not candidates:
        return "the repository has only incomplete split files or companions of models"
    listed = ", ".join(candidates[:_SHOWN]) + (", …" if len(candidates) > _SHOWN else "")
    what = f"no file with quantisation {variant}" if variant else "several GGUF files of unknown quantisation"
    return f"{what}; there are: {listed}"
