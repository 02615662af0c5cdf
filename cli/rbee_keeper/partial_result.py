"""Keeps the text of a stream that failed after its first token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_MAX_SAME_NAME = 100


def save_partial_result(text: str, request_id: str, folder: Path) -> Path:
    """Write ``text`` to a new file ``rbee-partial-<request_id>.txt`` that only its owner can read.

    Nothing that exists is opened: a file or link somebody prepared under that name is stepped round.

    Raises:
        OSError: the folder cannot be written.
    """
    for attempt in range(_MAX_SAME_NAME):
        suffix = f"-{attempt + 1}" if attempt else ""
        path = folder / f"rbee-partial-{request_id}{suffix}.txt"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
        return path
    raise FileExistsError(f"{_MAX_SAME_NAME} partial results of request {request_id} exist already")


def partial_folder(environ: Mapping[str, str]) -> Path:
    """``TMPDIR``, or ``/tmp``."""
    return Path(environ.get("TMPDIR") or "/tmp")  # noqa: S108 -- created exclusively, mode 0600
