"""One conversion per result across processes: the second waits and shows the first one's progress.

Beside the lock lies a note with the holder's pid, host, start and progress: for messages and for those who
wait, never for a decision.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rbee.core.clock import utc_iso
from rbee.models.locks import LOCKS_FOLDER, exclusive, unless_held

OnProgress = Callable[[int, int], None]

_PARTIAL = ".partial"
_NOTE_EVERY_S = 0.2


@dataclass(frozen=True)
class ConversionOwner:
    """Who holds the lock of a conversion, since when (UTC), and how far it is."""

    pid: int
    host: str
    since: str
    tensors_done: int = 0
    tensors_total: int = 0
    layers_done: int = 0
    layers_total: int = 0


@dataclass(frozen=True)
class ConversionProgress:
    """Where the progress of a conversion goes: of its calibration in layers, then of its tensors."""

    converting: OnProgress
    calibrating: OnProgress


@contextmanager
def exclusive_conversion(
    folder: Path, key: str, progress: ConversionProgress
) -> Iterator[ConversionProgress]:
    """Hold the lock of ``key`` in ``folder``; yields the progress callbacks to use while converting.

    While another process holds it, its progress goes to ``progress``. What each callback sees never
    goes backwards, even when the other process dies half-way and this one starts again. Left-overs of dead
    conversions are removed.
    """
    note = _note(folder, key)
    forward = ConversionProgress(_forward_only(progress.converting), _forward_only(progress.calibrating))
    with exclusive(_lock(folder, key), lambda: _show(note, forward)):
        try:
            _remove_leftovers(folder, key)
            yield _noting(note, forward)
        finally:
            note.unlink(missing_ok=True)


def conversion_owner(folder: Path, key: str) -> ConversionOwner | None:
    """The live holder of the lock of ``key``; None when nobody holds it, whatever a note says."""
    if not _lock(folder, key).exists():
        return None
    with unless_converted(folder, key) as is_free:
        return None if is_free else _read(_note(folder, key))


def unless_converted(folder: Path, key: str) -> AbstractContextManager[bool]:
    """Whether no process makes the conversion of ``key``; if so, none begins meanwhile."""
    return unless_held(_lock(folder, key))


def partial_folders(folder: Path) -> list[tuple[Path, str]]:
    """Unfinished folders with their keys, whether somebody still works on them or not."""
    found = sorted(folder.glob(f".*{_PARTIAL}"))
    return [(path, path.name.removeprefix(".").rsplit(".", 2)[0]) for path in found]


def partial_folder(folder: Path, key: str) -> Path:
    """A new folder to build the result of ``key`` in; only the holder of its lock may call this."""
    path = folder / f".{key}.{os.getpid()}-{time.time_ns():x}{_PARTIAL}"
    path.mkdir()
    return path


def _lock(folder: Path, key: str) -> Path:
    return folder / LOCKS_FOLDER / f"{key}.lock"


def _note(folder: Path, key: str) -> Path:
    return folder / LOCKS_FOLDER / f"{key}.json"


def _show(note: Path, forward: ConversionProgress) -> None:
    owner = _read(note)
    if owner is not None and owner.layers_total:
        forward.calibrating(owner.layers_done, owner.layers_total)
    if owner is not None and owner.tensors_total:
        forward.converting(owner.tensors_done, owner.tensors_total)


def _remove_leftovers(folder: Path, key: str) -> None:
    """Remove unfinished folders of this key, and of other keys whose lock is free: their makers are dead."""
    for path, other in partial_folders(folder):
        if other == key:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with unless_converted(folder, other) as is_free:
            if is_free:
                shutil.rmtree(path, ignore_errors=True)


def _forward_only(on_progress: OnProgress) -> OnProgress:
    furthest = -1

    def report(done: int, total: int) -> None:
        nonlocal furthest
        if done > furthest:
            furthest = done
            on_progress(done, total)

    return report


def _noting(note: Path, forward: ConversionProgress) -> ConversionProgress:
    owner = ConversionOwner(os.getpid(), socket.gethostname(), utc_iso())
    _write(note, owner)
    noted_at = time.monotonic()

    def keep(changed: ConversionOwner) -> None:
        nonlocal owner, noted_at
        owner = changed
        now = time.monotonic()
        if now - noted_at >= _NOTE_EVERY_S:
            noted_at = now
            _write(note, owner)

    def converting(done: int, total: int) -> None:
        keep(replace(owner, tensors_done=done, tensors_total=total))
        forward.converting(done, total)

    def calibrating(done: int, total: int) -> None:
        keep(replace(owner, layers_done=done, layers_total=total))
        forward.calibrating(done, total)

    return ConversionProgress(converting, calibrating)


def _write(note: Path, owner: ConversionOwner) -> None:
    partial = note.with_suffix(".new")
    partial.write_text(json.dumps(asdict(owner)), encoding="utf-8")
    os.replace(partial, note)


def _read(note: Path) -> ConversionOwner | None:
    try:
        return ConversionOwner(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
