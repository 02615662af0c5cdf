"""GGUF summaries for listings, read once per file and kept until the file changes."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import GgufSummary, read_gguf

logger = logging.getLogger(__name__)


def summary_of(path: Path) -> GgufSummary | None:
    """What the GGUF at ``path`` says of itself; None for a folder, and for a file that is gone or unreadable.

    The first call for a file parses its header, which takes up to half a second: not for an event loop.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    if not path.is_file():
        return None
    return _summary(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=512)
def _summary(path: Path, _size: int, _mtime_ns: int) -> GgufSummary | None:
    try:
        return read_gguf(path).summary()
    except ModelIncompatible as error:
        logger.warning("model has no readable header path=%s reason=%s", path, error.message)
        return None
