"""Which GGUF file of a repository a reference means, when it names a quantisation or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rbee.core.references import GGUF_SUFFIX

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

_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
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

    Split files (``-00001-of-0000N.gguf``) are no candidates. A repository with a single GGUF of no known name
    means that one. Of several files of one quantisation the one with the shortest path is taken.

    Raises:
        NoSuchGguf: nothing fits.
    """
    found = sorted({name for name in filenames if name.lower().endswith(GGUF_SUFFIX)})
    candidates = [name for name in found if not _SPLIT.search(name) and not _is_companion(name)]
    for wanted in [variant] if variant else PREFERENCE:
        matching = [name for name in candidates if _has_quantisation(name, wanted)]
        if matching:
            return min(matching, key=lambda name: (len(name), name))
    if not variant and len(candidates) == 1:
        return candidates[0]
    raise NoSuchGguf(_explain(found, candidates, variant))


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
        return "the repository has only split or companion GGUF files, which cannot be used"
    listed = ", ".join(candidates[:_SHOWN]) + (", …" if len(candidates) > _SHOWN else "")
    what = f"no file with quantisation {variant}" if variant else "several GGUF files of unknown quantisation"
    return f"{what}; there are: {listed}"
