"""The queen's identity: a UUID on disk that survives restarts, so that a restarted queen owns its hives."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def load_identity(path: Path) -> str:
    """The identity in ``path``, made on first use; two queens that start together agree on one.

    Raises:
        OSError: the file can neither be read nor written.
    """
    known = _read(path)
    if known is not None:
        return known
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{uuid.uuid4()}\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        if _read(path) is None:
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    identity = _read(path)
    if identity is None:
        raise OSError(f"{path} does not hold an identity")
    return identity


def _read(path: Path) -> str | None:
    try:
        return str(uuid.UUID(path.read_text().strip()))
    except (FileNotFoundError, ValueError):
        return None
