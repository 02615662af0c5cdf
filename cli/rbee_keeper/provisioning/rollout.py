"""Carries out an operation on nodes: lock, playbook, record, and the lines that tell how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbee import __version__
from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.provisioning.display import RunDisplay
from rbee_keeper.provisioning.fleet_lock import fleet_lock, who
from rbee_keeper.provisioning.operations import Operation
from rbee_keeper.provisioning.playbook_run import PlaybookOutcome, PlaybookRequest, run_playbook
from rbee_keeper.provisioning.runs import RunFolder, RunRecord
from rbee_keeper.provisioning.serving_queen import noted_rollout, serving_queen
from rbee_keeper.results import Streamed

if TYPE_CHECKING:
    from rbee_keeper.session import Session

_REGISTRY = "/v2/registry/beehives"
_LOCAL = "localhost"


@dataclass(frozen=True)
class Wish:
    """What a command line asks for.

    Attributes:
        nodes: names; empty for all registered nodes.
        serial: nodes at the same time; None for the playbook's own.
        check: only tell what would change.
        diff: show each change.
        version: another version than this program's.
        purge: an uninstall takes the models as well.
        drain_timeout: seconds open streams of a node may take to end; None for the playbook's own.
    """

    operation: Operation
    nodes: Sequence[str] = ()
    serial: int | None = None
    check: bool = False
    diff: bool = False
    version: str = ""
    purge: bool = False
    drain_timeout: int | None = None


def roll_out(session: Session, wish: Wish) -> Streamed:
    """Do it, and tell it while it happens.

    Raises:
        KeeperFailure: a node cannot be installed on, Ansible is missing, or somebody else changes the fleet.
        NodeNotFound: a node is not registered.
    """
    from rbee_keeper.provisioning.ansible_setup import ensure_ansible

    operation = wish.operation
    if _LOCAL in wish.nodes:
        raise KeeperFailure(
            f"Node '{_LOCAL}' is this machine and needs no installation",
            suggestion="Name a registered node: rbee-keeper setup list-nodes",
            code="INVALID_REQUEST",
        )
    nodes = _records(session, wish.nodes)
    ensure_ansible(session.terminal)
    names = [str(node["node_name"]) for node in nodes]
    request = PlaybookRequest(operation, nodes, _variables(session, wish), _arguments(wish))
    display = RunDisplay(session.terminal, operation, shows_changes=wish.diff, is_check=wish.check)
    with _locked(session, wish, names) as lock, _recorded(session, wish, names) as run:
        with noted_rollout(session, _target(wish), is_needed=_moves_versions(wish)):
            outcome = _play(session, request, display, run, lock)
        failures = {name: f"{f.task}: {f.reason}" for name, f in display.failures.items()}
        run.end(outcome, failures)
    return _tell(session, wish, outcome, display, names, run)


def _records(session: Session, names: Sequence[str]) -> list[Mapping[str, Any]]:
    queen = session.queen()
    if not names:
        listed = queen.get(f"{_REGISTRY}/list", timeout_s=60.0).get("nodes", [])
        found = [node for node in listed if not node.get("builtin")]
        if not found:
            raise KeeperFailure(
                "No remote nodes registered",
                suggestion="rbee-keeper setup add-node --help",
                code="NODE_NOT_FOUND",
            )
        return found
    records = []
    for name in dict.fromkeys(names):
        session.node = name
        records.append(queen.get(f"{_REGISTRY}/{name}"))
    return records


def _variables(session: Session, wish: Wish) -> dict[str, Any]:
    variables: dict[str, Any] = {
        "rbee_base_cache_dir": str(session.settings.cache_dir / "wheelhouse"),
        "rbee_base_control_python": sys.executable,
    }
    if wish.serial is not None:
        variables["rbee_serial"] = wish.serial
    if wish.version:
        variables["rbee_version"] = wish.version
    if wish.purge:
        variables["rbee_uninstall_purge"] = True
    if wish.drain_timeout is not None:
        variables["rbee_hive_drain_timeout_s"] = wish.drain_timeout
    queen = None if wish.check else serving_queen(session)
    if queen is not None:
        variables["rbee_queen_url"] = queen.url
    return variables


def _target(wish: Wish) -> str:
    return wish.version or __version__


def _moves_versions(wish: Wish) -> bool:
    return wish.operation.changes_version and not wish.check


def _arguments(wish: Wish) -> list[str]:
    return [word for word, is_wanted in (("--check", wish.check), ("--diff", wish.diff)) if is_wanted]


@contextmanager
def _locked(session: Session, wish: Wish, names: Sequence[str]) -> Iterator[int | None]:
    if wish.operation.is_read_only or wish.check:
        yield None
        return
    why = f"{wish.operation.name} of {', '.join(names)}"
    with fleet_lock(session.settings.run_dir, why, session.terminal.note) as lock:
        yield lock


class _Recording:
    """A run's folder and the record in it."""

    def __init__(self, folder: RunFolder, record: RunRecord) -> None:
        self.folder = folder
        self._record = record
        self._began = time.monotonic()
        folder.write(record)

    def end(self, outcome: PlaybookOutcome | None, failures: Mapping[str, str]) -> None:
        status, changed = "canceled", None
        if outcome is not None:
            done = {"successful": "succeeded", "canceled": "canceled"}
            status, changed = done.get(outcome.status, "failed"), outcome.stats.get("changed", {})
        self._record = replace(
            self._record,
            outcome=status,
            duration_s=round(time.monotonic() - self._began, 1),
            changed=changed,
            failures=failures,
        )
        self.folder.write(self._record)

    @property
    def is_open(self) -> bool:
        return self._record.outcome == "running"


@contextmanager
def _recorded(session: Session, wish: Wish, names: Sequence[str]) -> Iterator[_Recording]:
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    record = RunRecord(started, who(), wish.operation.name, list(names), _target(wish), wish.check)
    recording = _Recording(RunFolder(session.settings.home / "runs", names), record)
    try:
        yield recording
    finally:
        if recording.is_open:
            recording.end(None, {})


def _play(
    session: Session, request: PlaybookRequest, display: RunDisplay, run: _Recording, lock: int | None
) -> PlaybookOutcome:
    def take(event: Mapping[str, Any]) -> None:
        if event.get("stdout"):
            run.folder.add_output(str(event["stdout"]))
        display.take(event)

    settings = session.settings
    # ansible-runner looks for ansible-playbook in PATH; our environment need not be activated.
    path = f"{Path(sys.executable).parent}:{session.environ.get('PATH', '/usr/bin:/bin')}"
    environ = {**session.environ, "PATH": path, "RBEE_HOME": str(settings.home)}
    if session.api_key is not None:
        environ["RBEE_API_KEY"] = session.api_key
    configuration = settings.model_dump(mode="json", include={"ssh", "remote", "auth"})
    try:
        return run_playbook(
            request,
            home=settings.home,
            configuration=configuration,
            environ=environ,
            lock=lock,
            log=run.folder.output,
            take=take,
        )
    finally:
        display.finish()


def _tell(
    session: Session,
    wish: Wish,
    outcome: PlaybookOutcome,
    display: RunDisplay,
    names: Sequence[str],
    run: _Recording,
) -> Streamed:
    """The last lines, and the exit code."""
    terminal = session.terminal
    if outcome.status == "successful" and not display.failures:
        if wish.check:
            for name in names:
                count = outcome.stats.get("changed", {}).get(name, 0)
                terminal.line(f"[queen-rbee] 🔍 {count} changes would be made on {name}; nothing was changed")
        return Streamed()
    lines = []
    for failure in display.failures.values():
        told = f"{wish.operation.noun} failed on {failure.node}: {failure.task}"
        terminal.line(f"[queen-rbee] ❌ {told}")
        lines += [f"Error: {told}", *(f"  {line}" for line in failure.reason.splitlines())]
    if not display.failures:
        lines.append(f"Error: {wish.operation.noun} did not run")
        lines += [f"  {line}" for text in display.stray[-3:] for line in text.strip().splitlines()[-10:]]
    left = [name for name in names if name not in display.completed and name not in display.failures]
    if left:
        lines.append(f"  Left as they were: {', '.join(left)}")
    lines.append(f"  Log: {run.folder.output}")
    terminal.error(lines)
    return Streamed(exit_code=ExitCode.FAILED)
