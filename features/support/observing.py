"""Ways to look at what happened: log lines, HTTP answers, databases opened read-only, processes, ports."""

from __future__ import annotations

import json
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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
    def error(self) -> dict[str, Any]:
        content: dict[str, Any] = self.json()["error"]
        return content


def call(
    method: str,
    url: str,
    body: Any = None,
    *,
    key: str | None = API_KEY,
    headers: dict[str, str] | None = None,
    raw: bytes | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    """One request over a real socket; errors of HTTP are answers, not exceptions."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)  # noqa: S310 (loopback only)
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


def log_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a log, oldest first; what is not JSON (a crash trace) is left out."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def requests_seen(file: Path) -> list[tuple[str, str, int]]:
    """Method, path and status of every request a daemon logged, in order of completion."""
    return [
        (entry["method"], entry["path"], entry["status"])
        for entry in log_lines(file)
        if entry.get("event") == "http_request"
    ]


def rows(database: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, read without writing."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]  # noqa: S608


def events(body: bytes) -> list[tuple[str, Any]]:
    """Name and decoded data of the events of a finished stream; ``[DONE]`` stays text."""
    found = []
    for block in body.decode().split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
        if data:
            text = "\n".join(data)
            found.append((name, text if text == "[DONE]" else json.loads(text)))
    return found


def processes_of(state: Path) -> Iterator[psutil.Process]:
    """Every live process whose environment carries this state directory."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("RBEE_HOME") == str(state) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def arguments(process: psutil.Process) -> list[str]:
    """The command line of a process, empty when it is gone."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def is_program(process: psutil.Process, name: str) -> bool:
    """Whether a process runs one of our programs, as script or as module."""
    modules = {"queen-rbee": "rbee.queen", "rbee-hive": "rbee.hive", "llm-worker-rbee": "rbee.worker"}
    words = arguments(process)
    return any(word == modules[name] or word.endswith(f"/{name}") for word in words)


def pids_of(state: Path, name: str) -> set[int]:
    """Pids of the daemons of one kind below a state directory: the top process of each, not its children."""
    found = {p.pid: p for p in processes_of(state) if is_program(p, name)}
    return {pid for pid, process in found.items() if process.ppid() not in found}


def timed_numbers(text: str, pattern: str) -> list[float]:
    """All numbers a pattern captures."""
    return [float(number) for number in re.findall(pattern, text)]
