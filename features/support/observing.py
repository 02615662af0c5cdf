"""Ways to look at what happened: HTTP answers, event streams, log lines, databases opened read-only."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from features.support.sandbox import API_KEY


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, Any]]:
        return stream_events(self.body)


def call(
    method: str,
    url: str,
    body: Any = None,
    *,
    raw: bytes = b"",
    key: str | None = API_KEY,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Answer:
    """One request over a real socket; errors of HTTP are answers, not exceptions."""
    data = raw if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data or None, method=method)  # noqa: S310 (loopback only)
    request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return Answer(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


def stream_events(body: bytes) -> list[tuple[str, Any]]:
    """Name and decoded data of the complete events in a stream; ``[DONE]`` stays text."""
    found = []
    for block in body.decode(errors="replace").split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        names = [line[6:].strip() for line in lines if line.startswith("event:")]
        data = "\n".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:"))
        if data:
            found.append((names[-1] if names else "", data if data == "[DONE]" else json.loads(data)))
    return found


def unix_of(timestamp: str) -> float:
    """Unix seconds of a time as our programs write it."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def log_lines(file: Path, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
    """The JSON lines of a log with this event and these fields, oldest first; other lines are left out."""
    if not file.exists():
        return []
    wanted = fields if event is None else {"event": event, **fields}
    found = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and all(entry.get(key) == value for key, value in wanted.items()):
            found.append(entry)
    return found


def requests_logged(file: Path, request: str) -> list[dict[str, Any]]:
    """The log lines of the requests ``"METHOD /path"`` a daemon answered, in order of completion."""
    method, _, path = request.partition(" ")
    return log_lines(file, "http_request", method=method, path=path)


def rows(database: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, read without writing; none where there is no such file."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]  # noqa: S608


def tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table of every database in a folder, under ``file:table``."""
    found = {}
    for database in sorted(folder.glob("*.db")):
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            names = [
                row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            ]
        found |= {f"{database.name}:{name}": rows(database, name) for name in names}
    return found


def integrity(database: Path) -> str:
    """What SQLite says about the file: ``ok`` when it is sound."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
