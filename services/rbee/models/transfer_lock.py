"""One transfer per file across processes: the second one waits and shows the first one's progress."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rbee.models.partial_file import observe
from rbee.models.transfers import TransferListener

_POLL_S = 0.1


@contextmanager
def exclusive_transfer(models_dir: Path, target: Path, listener: TransferListener) -> Iterator[None]:
    """Hold the lock of ``target``; while another process holds it, report the growth of its partial file.

    The lock is the kernel's (flock): it ends with its holder, however that ends.
    """
    folder = models_dir / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(target.relative_to(models_dir)).encode()).hexdigest()[:32]
    lock = FileLock(folder / f"{name}.lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _wait(lock, target, listener)
    try:
        yield
    finally:
        lock.release()


def _wait(lock: FileLock, target: Path, listener: TransferListener) -> None:
    listener.narrate("model_download", f"Waiting for the download of {target.name} by another process")
    begun = False
    while True:
        try:
            lock.acquire(timeout=_POLL_S, poll_interval=_POLL_S / 2)
        except Timeout:
            seen = observe(target)
            if seen is not None and seen[0] > 0:
                if not begun:
                    listener.begin(seen[0])
                    begun = True
                listener.received(*seen)
        else:
            if begun and target.is_file():
                size = target.stat().st_size
                listener.received(size, size)
            return
