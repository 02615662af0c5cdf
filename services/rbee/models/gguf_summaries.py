"""What GGUF headers say, for listings: read once per file and kept until the file changes."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.models.gguf_file import GgufSummary, read_gguf
from rbee.models.memory_fit import ModelShape
from rbee.models.model_shape import shape_of_gguf
from rbee.models.split_files import parts_of

logger = logging.getLogger(__name__)


def summary_of(path: Path) -> GgufSummary | None:
    """What the GGUF at ``path`` says of itself; None for a folder, and for a file that is gone or unreadable.

    The first call for a file parses its header, which takes up to half a second: not for an event loop.
    """
    return _described(path)[0]


def shape_of(path: Path) -> ModelShape | None:
    """What decides the memory of the GGUF at ``path``; None also for one that cannot be converted."""
    return _described(path)[1]


def _described(path: Path) -> tuple[GgufSummary | None, ModelShape | None]:
    if not path.is_file():
        return None, None
    return _read(path, tuple(_stamp(part) for part in parts_of(path)))


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes with the file's content."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=512)
def _read(
    path: Path, _stamps: tuple[tuple[int, int] | None, ...]
) -> tuple[GgufSummary | None, ModelShape | None]:
    try:
        gguf = read_gguf(path)
        summary = gguf.summary()
    except (ModelIncompatible, ModelNotFound) as error:
        logger.warning("model has no readable header path=%s reason=%s", path, error.message)
        return None, None
    try:
        return summary, shape_of_gguf(gguf)
    except ModelIncompatible:
        return summary, None
