"""One conversion per result across processes: the second waits and shows the first one's progress.

The lock is the kernel's (flock), so that it ends with its holder, however that ends. Beside it lies a note
with the holder's pid, host, start and progress: for messages and for those who wait, never for a decision.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from rbee.core.clock import utc_iso

OnProgress = Callable[[int, int], None]

LOCKS_FOLDER = ".locks"
_PARTIAL = ".partial"
_POLL_S = 0.1
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
    locks = folder / LOCKS_FOLDER
    locks.mkdir(parents=True, exist_ok=True)
    note = locks / f"{key}.json"
    forward = ConversionProgress(_forward_only(progress.converting), _forward_only(progress.calibrating))
    lock = _lock(locks, key)
    _acquire(lock, note, forward)
    try:
        _remove_leftovers(folder, key)
        yield _noting(note, forward)
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def conversion_owner(folder: Path, key: str) -> ConversionOwner | None:
    """The live holder of the lock of ``key``; None when nobody holds it, whatever a note says."""
    locks = folder / LOCKS_FOLDER
    if not (locks / f"{key}.lock").exists():
        return None
    lock = _lock(locks, key)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return _read(locks / f"{key}.json")
    lock.release()
    return None


@contextmanager
def unless_converted(folder: Path, key: str) -> Iterator[bool]:
    """Whether no process makes the conversion of ``key``; if so, none begins meanwhile."""
    locks = folder / LOCKS_FOLDER
    locks.mkdir(parents=True, exist_ok=True)
    lock = _lock(locks, key)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def partial_folders(folder: Path) -> list[tuple[Path, str]]:
    """Unfinished folders with their keys, whether somebody still works on them or not."""
    found = sorted(folder.glob(f".*{_PARTIAL}"))
    return [(path, path.name.removeprefix(".").rsplit(".", 2)[0]) for path in found]


def partial_folder(folder: Path, key: str) -> Path:
    """A new folder to build the result of ``key`` in; only the holder of its lock may call this."""
    path = folder / f".{key}.{os.getpid()}-{time.time_ns():x}{_PARTIAL}"
    path.mkdir()
    return path


def _lock(locks: Path, key: str) -> FileLock:
    return FileLock(locks / f"{key}.lock", thread_local=False)


def _acquire(lock: FileLock, note: Path, forward: ConversionProgress) -> None:
    while True:
        try:
            lock.acquire(timeout=_POLL_S, poll_interval=_POLL_S / 2)
        except Timeout:
            owner = _read(note)
            if owner is not None and owner.layers_total:
                forward.calibrating(owner.layers_done, owner.layers_total)
            if owner is not None and owner.tensors_total:
                forward.converting(owner.tensors_done, owner.tensors_total)
        else:
            return


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
