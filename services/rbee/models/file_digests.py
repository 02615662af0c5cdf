"""Digests of model files: of one file, and of all parts of a split model together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.models.split_files import combined_digest, parts_of
from rbee.models.storage import MIB

_BLOCK_BYTES = 4 * MIB


def digests_of(
    path: Path, on_bytes: Callable[[int], None] = lambda _count: None
) -> tuple[str, tuple[str, ...]]:
    """The digest of a model by its first file, and those of its parts (none for a whole model), in hex.

    ``on_bytes`` gets the number of bytes just read. Raises ModelNotFound when a file does not exist, and
    ModelIncompatible when one cannot be read.
    """
    digests = [_sha256(part, on_bytes) for part in parts_of(path)]
    return combined_digest(digests), tuple(digests) if len(digests) > 1 else ()


def _sha256(path: Path, on_bytes: Callable[[int], None]) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
                on_bytes(count)
    except FileNotFoundError:
        raise ModelNotFound(path.name, "the file does not exist") from None
    except OSError as error:
        raise ModelIncompatible(f"The model file cannot be read: {error.strerror}") from None
    return digest.hexdigest()
