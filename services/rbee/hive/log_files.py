"""Reads the end of this node's log files and what is added to them, across rotation, in bounded memory."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rbee.core.clock import utc_iso
from rbee.core.logs import ROTATE_KEEP, escape_control

HIVE_SOURCE = "rbee-hive"

_BLOCK = 64 * 1024
_MAX_TAIL_BYTES = 16 * 1024 * 1024
_MAX_LINE_BYTES = 64 * 1024
_MAX_NEW_BYTES = 1024 * 1024
_TIMESTAMP = re.compile(rb'\{"timestamp": ?"([0-9TZ:.-]{20,30})"')


@dataclass(frozen=True)
class LogLine:
    """One line of a log, control characters escaped. ``source`` is ``rbee-hive`` or a worker id."""

    source: str
    line: str

    def wire(self) -> dict[str, str]:
        return {"source": self.source, "line": self.line}


@dataclass
class _Place:
    """Up to where a file has been read: always the beginning of a line."""

    identity: tuple[int, int]
    position: int = 0


class LogFiles:
    """The log directory of a hive.

    Args:
        source: read only this worker's log; None reads the hive's and those of all workers.
    """

    def __init__(self, log_dir: Path, source: str | None = None) -> None:
        self._log_dir = log_dir
        self._source = source
        self._places: dict[Path, _Place] = {}

    def last_lines(self, count: int) -> list[LogLine]:
        """The last ``count`` lines of all sources together, by time; ``new_lines`` goes on where they end."""
        kept: list[tuple[str, LogLine]] = []
        for path, status in self._files():
            self._places[path] = _Place(_identity(status), status.st_size)
            if len(kept) == count and (count == 0 or utc_iso(status.st_mtime) < kept[0][0]):
                continue
            lines, self._places[path] = _last_lines(path, count)
            # Stable: lines of one file keep their order where times are equal.
            kept = sorted(kept + _timed(path.stem, lines), key=lambda timed: timed[0])
            kept = kept[len(kept) - min(count, len(kept)) :]
        return [line for _, line in kept]

    def new_lines(self) -> Iterator[LogLine]:
        """Lines completed since the last call, file by file; files that have appeared are read whole."""
        for path, status in self._files():
            place = self._places.setdefault(path, _Place(_identity(status)))
            if place.identity != _identity(status):
                yield from self._rest_of_rotated(path, place)
                place.identity, place.position = _identity(status), 0
            elif status.st_size < place.position:
                place.position = 0
            yield from _read_on(path, place)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """The files to read, those that were written last first."""
        try:
            entries = [entry for entry in os.scandir(self._log_dir) if self._is_wanted(entry.name)]
            found = [(Path(entry.path), entry.stat()) for entry in entries]
        except OSError:
            return []  # nothing logged yet, or a file went away under our eyes: the next look finds the rest
        return sorted(found, key=lambda file: -file[1].st_mtime)

    def _is_wanted(self, name: str) -> bool:
        if self._source is not None:
            return name == f"{self._source}.log"
        return name == f"{HIVE_SOURCE}.log" or (name.startswith("worker-") and name.endswith(".log"))

    def _rest_of_rotated(self, path: Path, place: _Place) -> Iterator[LogLine]:
        for older in _rotated(path):
            try:
                is_it = _identity(older.stat()) == place.identity
            except OSError:
                return
            if is_it:
                yield from _read_on(older, place, path.stem)
                return


def _read_on(path: Path, place: _Place, source: str | None = None) -> Iterator[LogLine]:
    """Complete lines after ``place``, which moves on with them."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        while True:
            file.seek(place.position)
            piece = file.read(_MAX_NEW_BYTES)
            end = piece.rfind(b"\n") + 1
            if end == 0:
                if len(piece) <= _MAX_LINE_BYTES:
                    return
                end = len(piece)
            place.position += end
            for raw in piece[:end].removesuffix(b"\n").split(b"\n"):
                yield _as_line(source or path.stem, raw)


def _last_lines(path: Path, count: int) -> tuple[list[bytes], _Place]:
    """The last complete lines of a log, from rotated files too, and the place after them."""
    lines: list[bytes] = []
    place = _Place((0, 0))
    seen: set[tuple[int, int]] = set()
    for candidate in (path, *_rotated(path)):
        try:
            file = candidate.open("rb")
        except OSError:
            break
        with file:
            identity = _identity(os.fstat(file.fileno()))
            if identity in seen:
                continue  # rotated while we read: the same file under its next name
            end, found, is_whole = _tail(file, count - len(lines))
        if not seen:
            place = _Place(identity, end)
        seen.add(identity)
        lines = found + lines
        if not is_whole or len(lines) >= count:
            break
    return lines[len(lines) - min(count, len(lines)) :], place


def _tail(file: BinaryIO, count: int) -> tuple[int, list[bytes], bool]:
    """End of the last complete line; ``count`` lines or more before it; whether these are all there are."""
    position = file.seek(0, os.SEEK_END)
    blocks: deque[bytes] = deque()
    newlines = total = 0
    while position > 0 and newlines <= count and total < _MAX_TAIL_BYTES:
        size = min(_BLOCK, position)
        position = file.seek(position - size)
        blocks.appendleft(file.read(size))
        total += len(blocks[0])
        newlines += blocks[0].count(b"\n")
    raw = b"".join(blocks)
    complete = raw[: raw.rfind(b"\n") + 1]
    end = position + len(complete)
    if position > 0:
        complete = complete.partition(b"\n")[2]
    return end, complete.split(b"\n")[:-1], position == 0


def _timed(source: str, lines: list[bytes]) -> list[tuple[str, LogLine]]:
    timed, time = [], ""
    for raw in lines:
        match = _TIMESTAMP.match(raw)
        # A line without a time, such as one of a traceback, belongs to the one before it.
        time = match.group(1).decode() if match else time
        timed.append((time, _as_line(source, raw)))
    return timed


def _as_line(source: str, raw: bytes) -> LogLine:
    text = raw[:_MAX_LINE_BYTES].removesuffix(b"\r").decode("utf-8", "replace")
    return LogLine(source, escape_control(text))


def _rotated(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.{number}") for number in range(1, ROTATE_KEEP + 1)]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
