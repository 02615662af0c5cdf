"""One transfer per model across processes: the second one waits and shows the first one's progress."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rbee.models.locks import LOCKS_FOLDER, exclusive, unless_held
from rbee.models.partial_file import observe
from rbee.models.transfers import TransferListener


@contextmanager
def exclusive_transfer(
    models_dir: Path, targets: Sequence[Path], size_bytes: int | None, listener: TransferListener
) -> Iterator[None]:
    """Hold the lock of a model's files; while another process holds it, report how they grow."""
    watch = _Watch(targets, size_bytes, listener)
    with exclusive(_lock(models_dir, targets[0]), watch.look):
        watch.conclude()
        yield


def unless_transferred(models_dir: Path, target: Path) -> AbstractContextManager[bool]:
    """Whether no process transfers the model whose first file is ``target``; if so, none begins meanwhile."""
    return unless_held(_lock(models_dir, target))


def _lock(models_dir: Path, target: Path) -> Path:
    name = hashlib.sha256(str(target.relative_to(models_dir)).encode()).hexdigest()[:32]
    return models_dir / LOCKS_FOLDER / f"{name}.lock"


class _Watch:
    """Tells a listener how the files of another process's transfer grow."""

    def __init__(self, targets: Sequence[Path], size_bytes: int | None, listener: TransferListener) -> None:
        self._targets, self._size_bytes, self._listener = targets, size_bytes, listener
        self._has_narrated = self._has_begun = False

    def look(self) -> None:
        if not self._has_narrated:
            self._has_narrated = True
            name = self._targets[0].name
            self._listener.narrate("model_download", f"Waiting for the download of {name} by another process")
        done, total = _observe(self._targets, self._size_bytes)
        if done > 0:
            if not self._has_begun:
                self._has_begun = True
                self._listener.begin(done)
            self._listener.received(done, total)

    def conclude(self) -> None:
        """The other process is done: what was begun here is told to its end, if the files are there."""
        if self._has_begun and all(target.is_file() for target in self._targets):
            size = sum(target.stat().st_size for target in self._targets)
            self._listener.received(size, size)


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
