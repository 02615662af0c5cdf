"""Ways to look at processes: which of ours run, who started them, what they listen on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

MODULES = {
    "rbee-keeper": "rbee_keeper",
    "queen-rbee": "rbee.queen",
    "rbee-hive": "rbee.hive",
    "llm-worker-rbee": "rbee.worker",
}


def processes_of(state: Path) -> list[psutil.Process]:
    """Every live process whose environment carries this state directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RBEE_HOME") == str(state) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def arguments(process: psutil.Process) -> list[str]:
    """The command line of a process, empty when it is gone."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def is_program(process: psutil.Process, name: str) -> bool:
    """Whether a process runs one of our programs, as script or as module."""
    return any(word == MODULES[name] or word.endswith(f"/{name}") for word in arguments(process))


def daemons(state: Path, name: str) -> list[psutil.Process]:
    """The daemons of one kind below a state directory: the top process of each, not its children."""
    found = {p.pid: p for p in processes_of(state) if is_program(p, name)}
    return [process for process in found.values() if _parent(process) not in found]


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_below(process: psutil.Process, ancestor: int) -> bool:
    """Whether ``ancestor`` is among the parents of a process."""
    return any(parent.pid == ancestor for parent in process.parents())


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Addresses on which a daemon, or a child of it, accepts connections."""
    found = set()
    for member in [process, *process.children()]:
        for connection in member.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return sorted(found)


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


@dataclass(frozen=True)
class Member:
    """A daemon that was seen, with the addresses it listened on."""

    name: str
    pid: int
    addresses: tuple[tuple[str, int], ...]


def family(keeper: int) -> list[Member] | None:
    """The queen that is a child of a keeper, a hive below it, a worker below that; None until all listen."""
    parent, found = keeper, []
    for name in ("queen-rbee", "rbee-hive", "llm-worker-rbee"):
        try:
            below = psutil.Process(parent).children(recursive=name != "queen-rbee")
            process = next((child for child in below if is_program(child, name)), None)
            addresses = tuple(listening(process)) if process else ()
        except psutil.NoSuchProcess:
            return None
        if process is None or not addresses:
            return None
        parent = process.pid
        found.append(Member(name, parent, addresses))
    return found
