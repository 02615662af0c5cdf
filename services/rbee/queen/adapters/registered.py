"""Whether the registry holds anything, found out without loading the database library."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_ANYTHING = "SELECT 1 FROM beehives UNION ALL SELECT 1 FROM cordons UNION ALL SELECT 1 FROM rollouts LIMIT 1"


class Registered:
    """Looks at the registry file when it has changed since the last look."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._has_nodes = False

    def has_nodes(self) -> bool:
        """Whether any node is registered."""
        try:
            facts = self._file.stat()
        except OSError:
            return False
        if self._seen != (facts.st_mtime_ns, facts.st_size):
            self._has_nodes = has_nodes(self._file)
            self._seen = (facts.st_mtime_ns, facts.st_size)
        return self._has_nodes


def has_nodes(file: Path) -> bool:
    """Whether there are nodes, cordons or a roll-out. A file that cannot be read is left to its adapter."""
    if not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=1)) as database:
            return database.execute(_ANYTHING).fetchone() is not None
    except sqlite3.Error:
        return True
