"""Runs a playbook for nodes of the registry: request, child process, events, outcome."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee_keeper.provisioning.content import content_folder, registry_inventory
from rbee_keeper.provisioning.operations import Operation

_CANCEL_PATIENCE_S = 20.0
_WORKER = "rbee_keeper.adapters.ansible_process"


@dataclass(frozen=True)
class PlaybookRequest:
    """What is to be run.

    Attributes:
        nodes: node records of the queen's registry.
        variables: extra variables of the run.
        arguments: further words for ``ansible-playbook``.
    """

    operation: Operation
    nodes: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class PlaybookOutcome:
    """How it ended: ansible-runner's status, ``ansible-playbook``'s exit code, and its counts by node."""

    status: str
    exit_code: int | None
    stats: Mapping[str, Mapping[str, int]]


def run_playbook(
    request: PlaybookRequest,
    *,
    home: Path,
    configuration: Mapping[str, Mapping[str, Any]],
    environ: Mapping[str, str],
    lock: int | None,
    log: Path,
    take: Callable[[Mapping[str, Any]], None],
) -> PlaybookOutcome:
    """Run it to its end; whatever ends this call ends the playbook.

    Args:
        home: the state directory; it has the host keys the queen has seen.
        configuration: the config file's sections that concern nodes.
        environ: of the playbook; holds the fleet key.
        lock: a descriptor the child inherits, so that the lock lasts as long as the work.
        log: takes what the child itself has to say, such as the reason why it could not start.
        take: is given each event.
    """
    content = content_folder()
    variables_of = registry_inventory().host_variables
    hosts = {str(node["node_name"]): variables_of(node, home, configuration) for node in request.nodes}
    message = {
        "playbook": str(content / "playbooks" / f"{request.operation.name}.yml"),
        "config": str(content / "playbooks" / "ansible.cfg"),
        "inventory": {"rbee_nodes": {"hosts": hosts}},
        "extravars": dict(request.variables),
        "arguments": list(request.arguments),
    }
    with _child(environ, lock, log) as child:
        last: dict[str, Any] = {}
        for line in _answers(child, message):
            last = json.loads(line)
            if "done" not in last:
                take(last)
    return PlaybookOutcome(str(last.get("done", "died")), last.get("exit_code"), last.get("stats", {}))


def _answers(child: subprocess.Popen[str], message: Mapping[str, Any]) -> Iterator[str]:
    """Send the request; the lines of the child until it ends."""
    if child.stdin is None or child.stdout is None:
        raise ValueError("the child has no pipes")
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()
    yield from child.stdout


@contextlib.contextmanager
def _child(environ: Mapping[str, str], lock: int | None, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that runs ansible-runner; its standard input stays open for as long as we live."""
    with log.open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],
        )
    try:
        yield child
    finally:
        if child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()
        _await_end(child)
        if child.stdout is not None:
            child.stdout.close()


def _await_end(child: subprocess.Popen[str]) -> None:
    """Closing its input has told the child to cancel what still runs; what does not end is killed."""
    deadline = time.monotonic() + _CANCEL_PATIENCE_S
    while child.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(child.pid, 9)
            child.wait()
        time.sleep(0.05)
