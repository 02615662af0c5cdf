"""One transfer per model across processes: the second one waits and shows the first one's progress."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rbee.models.partial_file import observe
from rbee.models.transfers import TransferListener

LOCKS_FOLDER = ".locks"
_POLL_S = 0.1


@contextmanager
def exclusive_transfer(
    models_dir: Path, targets: Sequence[Path], size_bytes: int | None, listener: TransferListener
) -> Iterator[None]:
    """Hold the lock of a model's files; while another process holds it, report how they grow.

    The lock is the kernel's (flock): it ends with its holder, however that ends.
    """
    lock = _lock(models_dir, targets[0])
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _wait(lock, targets, size_bytes, listener)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unless_transferred(models_dir: Path, target: Path) -> Iterator[bool]:
    """Whether no process transfers the model whose first file is ``target``; if so, none begins meanwhile."""
    lock = _lock(models_dir, target)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(models_dir: Path, target: Path) -> FileLock:
    folder = models_dir / LOCKS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(target.relative_to(models_dir)).encode()).hexdigest()[:32]
    return FileLock(folder / f"{name}.lock", thread_local=False)


def _wait(
    lock: FileLock, targets: Sequence[Path], size_bytes: int | None, listener: TransferListener
) -> None:
    listener.narrate("model_download", f"Waiting for the download of {targets[0].name} by another process")
    begun = False
    while True:
        try:
            lock.acquire(timeout=_POLL_S, poll_interval=_POLL_S / 2)
        except Timeout:
            done, total = _observe(targets, size_bytes)
            if done > 0:
                if not begun:
                    listener.begin(done)
                    begun = True
                listener.received(done, total)
        else:
            if begun and all(target.is_file() for target in targets):
                size = sum(target.stat().st_size for target in targets)
                listener.received(size, size)
            return


def _observe(targets: Sequence[Path], size_bytes: int | None) -> tuple[int, int | None]:
    """Bytes that another process has received of these files, and how many there will be."""
    done, total = 0, size_bytes
    for target in targets:
        seen = observe(target)
        if seen is not None:
            done += seen[0]
            total = seen[1] if total is None and len(targets) == 1 else total
        elif len(targets) > 1 and target.is_file():
            done += target.stat().st_size
    return done, total
