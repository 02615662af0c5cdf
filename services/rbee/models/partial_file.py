"""The file that a download grows in, with a note of what it is a part of, so that a later process goes on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType

from rbee.models.storage import PARTIAL_SUFFIX, sync_folder

PARTIAL_NOTE_SUFFIX = ".json"
_HASH_BLOCK = 1024 * 1024


class PartialFile:
    """``<target>.partial`` beside the target, with a note of size, digest and validator of the whole.

    Bytes are written through at once: what was received survives the death of this process. The digest grows
    with the file; the bytes of an earlier process are read once to catch up.
    """

    def __init__(self, target: Path, size_bytes: int | None, sha256: str | None) -> None:
        self.path = target.with_name(target.name + PARTIAL_SUFFIX)
        self.offset = 0
        self.validator: str | None = None
        self._target = target
        self._note = _note_path(target)
        self._identity = {"size_bytes": size_bytes, "sha256": sha256}
        self._hash = hashlib.sha256()
        self._file = open(self.path, "ab", buffering=0, opener=_open_no_link)  # noqa: SIM115 - closed by __exit__
        try:
            self._take_up(_read_note(self._note))
            self._write_note()
        except BaseException:
            self._file.close()
            raise

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end. Raises OSError when the disk does not take them."""
        view = memoryview(chunk)
        while view:
            written = self._file.write(view)
            self._hash.update(view[:written])
            self.offset += written
            view = view[written:]

    def describe(self, size_bytes: int | None, validator: str | None) -> None:
        """Note what the source says of the whole: its size, and an ETag or date that changes with it."""
        self._identity["size_bytes"] = self._identity["size_bytes"] or size_bytes
        self.validator = validator
        self._write_note()

    def restart(self) -> None:
        """Forget all bytes."""
        self._file.truncate(0)
        self.offset = 0
        self._hash = hashlib.sha256()

    def sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._hash.hexdigest()

    def complete(self) -> None:
        """Put the bytes under the target's name, durably."""
        os.fsync(self._file.fileno())
        os.replace(self.path, self._target)
        self._note.unlink(missing_ok=True)
        sync_folder(self._target.parent)

    def discard(self) -> None:
        """Remove file and note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None and self.offset == 0:
            self.discard()

    def _take_up(self, note: dict[str, object]) -> None:
        present = self.path.stat().st_size
        size, sha256 = self._identity["size_bytes"], self._identity["sha256"]
        self.validator = str(note["validator"]) if note.get("validator") else None
        # With a digest to check against at the end, bytes of unknown origin may be tried; without one,
        # only bytes that are known to belong to this very file.
        same = note.get("sha256") == sha256 if note else sha256 is not None
        if size is not None and note:
            same = same and note.get("size_bytes") == size
        if sha256 is None and self.validator is None:
            same = False
        if not same or (isinstance(size, int) and present > size):
            self.validator = None
            self.restart()
            return
        with self.path.open("rb", buffering=0) as file:
            while block := file.read(_HASH_BLOCK):
                self._hash.update(block)
                self.offset += len(block)

    def _write_note(self) -> None:
        self._note.write_text(json.dumps({**self._identity, "validator": self.validator}), encoding="utf-8")


def _open_no_link(path: str, flags: int) -> int:
    # A link here would let bytes leave the models directory.
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def observe(target: Path) -> tuple[int, int | None] | None:
    """Bytes received and expected of a download that another process runs; None when there is none."""
    try:
        done = target.with_name(target.name + PARTIAL_SUFFIX).stat().st_size
    except OSError:
        return None
    size = _read_note(_note_path(target)).get("size_bytes")
    return done, size if isinstance(size, int) else None


def _note_path(target: Path) -> Path:
    return target.with_name(f"{target.name}{PARTIAL_SUFFIX}{PARTIAL_NOTE_SUFFIX}")


def _read_note(path: Path) -> dict[str, object]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
