"""Reaching a node's hive: connect, start it where none runs, own what was started, renew its lease."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import gevent

from rbee.core.client import TransportFailure
from rbee.core.compatibility import is_compatible
from rbee.core.errors import (
    BadHiveResponse,
    ConnectionTimeout,
    HiveStartFailed,
    RbeeError,
    ServiceUnavailable,
    VersionMismatch,
)
from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.ownership import LauncherFor, OwnedHive, OwnedHives
from rbee.queen.ports import HiveApi, HiveHealth, HiveLauncher, HiveProcess, NotAHive, Peers
from rbee.queen.registry import Node, Nodes
from rbee.queen.retries import attempt_line, attempts

Narrate = Callable[[str, str], None]
"""Told an action and its text."""
_LOOKUP_TIMEOUT_S = 5.0
STOPPING = "stopping"
"""The status of a hive that is shutting down."""


@dataclass(frozen=True)
class _Started:
    """Outcome of a start: the node with its hive's true port, or why there is none."""

    node: Node
    health: HiveHealth | None = None
    error: RbeeError | None = None


def silently(_action: str, _text: str) -> None:
    """Narrate to nobody."""


class Fleet:
    """The hives of all nodes as this queen sees them."""

    def __init__(
        self,
        nodes: Nodes,
        peers: Peers,
        launcher_for: LauncherFor,
        identity: str,
        version: str,
        timing: Timing,
    ) -> None:
        self.nodes = nodes
        self.peers = peers
        self.launcher_for = launcher_for
        self.version = version
        self._timing = timing
        self._log = get_logger("queen-rbee")
        self.owned = OwnedHives(identity, peers, launcher_for, timing)
        self._starting: dict[str, gevent.Greenlet] = {}
        self._untold: set[str] = set()
        """Nodes whose hive was launched before any task asked for it; the first task tells of the start."""
        self._versions: dict[str, str] = {}
        """Of the hives that were reached, by node."""
        self._is_closing = False

    def reach(self, node: Node, narrate: Narrate, client_version: str | None = None) -> HiveApi:
        """The node's hive, started if none runs, of the version that ``client_version`` needs.

        Raises:
            ConnectionTimeout, BadHiveResponse, HiveStartFailed, SshConnectionFailed, VersionMismatch,
            InvalidApiKey
        """
        try:
            health = self._connect(node, narrate)
            known = self.nodes.find(node.node_name) if node.builtin else node
            if health is None and known.hive_port != node.hive_port:
                # Another task has started it on another port since this one looked the node up.
                node, health = known, self._connect(known, narrate)
            is_new = health is None
            if health is None:
                node, health = self._start_once(node, narrate)
            elif node.node_name in self._untold:
                self._tell_of_start(node, narrate)
        except RbeeError as error:
            self.nodes.note_unreachable(node, error.message)
            raise
        self.owned.note(node, health)
        self.nodes.note_reachable(node, hive_is_new=is_new)
        self._versions[node.node_name] = health.version
        wanted = client_version or self.version
        if not self.is_compatible(health.version, wanted):
            raise VersionMismatch(wanted, hive_version=health.version)
        return self.peers.hive(node)

    def version_of(self, node: Node) -> str:
        """The version of the node's hive when it was last reached."""
        return self._versions.get(node.node_name, self.version)

    def is_compatible(self, version: str, wanted: str) -> bool:
        """Whether programs of these versions may work together now; a roll-out widens the window.

        Equal versions, the rule, are told before the registry is asked whether one is under way.
        """
        return version == wanted or is_compatible(
            version, wanted, is_rolling=self.nodes.cordons.rollout is not None
        )

    def look(self, node: Node, timeout_s: float) -> HiveApi | None:
        """The node's hive if one runs there; None where the connection is refused. Starts nothing.

        Raises:
            ConnectionTimeout: no answer in time. BadHiveResponse, InvalidApiKey: an unusable one.
        """
        try:
            hive = self.peers.hive(node)
            health = hive.health(timeout_s)
        except TransportFailure as failure:
            if failure.kind == "refused":
                return None
            raise ConnectionTimeout(node.ssh_host, node.hive_port, 1, timeout_s, node.node_name) from None
        except NotAHive as error:
            if node.builtin:
                return None
            raise BadHiveResponse(node.ssh_host, str(error)) from None
        self.owned.note(node, health)
        return hive

    def preflight(self, node: Node, hive: HiveApi) -> None:
        """The pool preflight: the hive is alive.

        Raises:
            BadHiveResponse, ConnectionTimeout
        """
        timeout_s = self._timing.hive_connect_timeout_s
        try:
            health = hive.health(timeout_s)
        except TransportFailure:
            raise ConnectionTimeout(hive.host, hive.port, 1, timeout_s, node.node_name) from None
        except NotAHive as error:
            raise BadHiveResponse(hive.host, str(error)) from None
        if health.status != "alive":
            raise BadHiveResponse(hive.host, f"status is {health.status!r}, not 'alive'")

    def begin_start(self, node: Node, process: HiveProcess | None = None) -> gevent.Greenlet:
        """Start the node's hive in the background, once however many ask.

        Args:
            process: a hive that has been launched already and only needs to be waited for.
        """
        running = self._starting.get(node.node_name)
        if running is None:
            running = gevent.spawn(self._start, node, process)
            self._starting[node.node_name] = running
            if process is not None:
                self._untold.add(node.node_name)
        return running

    def resume_leases(self) -> None:
        """Look the hives of all registered nodes up and own again those that name this queen."""
        gevent.joinall([gevent.spawn(self._look_up, node) for node in self.nodes.all()])

    def close(self) -> list[OwnedHive]:
        """Start no more hives, wait for starts under way to become known, and give up what is owned."""
        self._is_closing = True
        gevent.joinall(
            [running for name, running in self._starting.items() if name not in self.owned],
            timeout=self._timing.ssh_connect_timeout_s,
        )
        return self.owned.surrender()

    def _connect(self, node: Node, narrate: Narrate) -> HiveHealth | None:
        """The hive's health, or None where a hive has to be started."""
        timeout_s = self._timing.hive_connect_timeout_s
        plan = attempts(self._timing.hive_connect_attempts, self._timing.hive_connect_delays_ms)
        for attempt in plan:
            if attempt.delay_ms:
                gevent.sleep(attempt.delay_ms / 1000)
            narrate("retry", attempt_line(attempt, node.ssh_host, node.hive_port, timeout_s))
            try:
                health = self.peers.hive(node).health(timeout_s)
                if health.status != STOPPING:
                    return health
                self._await_end(node, narrate)
                return None
            except NotAHive as error:
                if node.builtin:
                    return None
                raise BadHiveResponse(node.ssh_host, str(error)) from None
            except TransportFailure as failure:
                if failure.kind == "refused":
                    return None
                self._log.warning(
                    "hive_connect_failed",
                    message=failure.reason,
                    node=node.node_name,
                    attempt=attempt.number,
                )
        raise ConnectionTimeout(node.ssh_host, node.hive_port, len(plan), timeout_s, node.node_name)

    def _await_end(self, node: Node, narrate: Narrate) -> None:
        """Wait until a hive that is shutting down has left its port: it takes no more work.

        Raises:
            BadHiveResponse: it does not come to its end.
        """
        narrate("health_check", f"Waiting for the rbee-hive on {node.node_name} that is shutting down")
        deadline = time.monotonic() + self._timing.hive_shutdown_timeout_s + _LOOKUP_TIMEOUT_S
        while time.monotonic() < deadline:
            gevent.sleep(self._timing.hive_start_poll_ms / 1000)
            try:
                if self.peers.hive(node).health(_LOOKUP_TIMEOUT_S).status != STOPPING:
                    return
            except NotAHive:
                return
            except TransportFailure as failure:
                if failure.kind == "refused":
                    return
        raise BadHiveResponse(node.ssh_host, "it is shutting down and does not end")

    def _start_once(self, node: Node, narrate: Narrate) -> tuple[Node, HiveHealth]:
        if not node.builtin:
            narrate("ssh_connect", f"Logging in to {node.ssh_user}@{node.ssh_host}:{node.ssh_port}")
        self._untold.discard(node.node_name)
        narrate("hive_start", f"Starting rbee-hive on {node.node_name}")
        started: _Started = self.begin_start(node).get()
        if started.error is not None:
            raise started.error
        assert started.health is not None  # noqa: S101 (an outcome has one or the other)
        narrate("hive_start", f"rbee-hive is ready on {node.node_name}")
        return started.node, started.health

    def _tell_of_start(self, node: Node, narrate: Narrate) -> None:
        """The words of a start that was over before the first task came."""
        self._untold.discard(node.node_name)
        narrate("hive_start", f"Starting rbee-hive on {node.node_name}")
        narrate("hive_start", f"rbee-hive is ready on {node.node_name}")

    def _start(self, node: Node, process: HiveProcess | None) -> _Started:
        """Runs in a greenlet of its own: a task that is cancelled meanwhile does not undo the start."""
        launcher = self.launcher_for(node)
        try:
            if process is None:
                if self._is_closing:
                    raise ServiceUnavailable("The queen is shutting down")
                process = launcher.start(node, node.hive_port)
            if node.builtin:
                node = self.nodes.move_local_hive(process.port)
            if process.pid is not None:
                self.owned.own(node, process.pid)
            self._log.info(
                "hive_started", message="hive process started", node=node.node_name, pid=process.pid
            )
            return _Started(node, health=self._await_health(node, launcher, process))
        except RbeeError as error:
            self._log.error("hive_start_failed", message=error.message, node=node.node_name)
            self.owned.drop_if_failed(node)
            return _Started(node, error=error)
        finally:
            self._starting.pop(node.node_name, None)

    def _await_health(self, node: Node, launcher: HiveLauncher, process: HiveProcess) -> HiveHealth:
        """The health of the hive that was started, or of another one that was quicker to take the port.

        Raises:
            HiveStartFailed
        """
        deadline = time.monotonic() + self._timing.hive_start_timeout_s
        poll_s = self._timing.hive_start_poll_ms / 1000
        while True:
            launcher.pause(node, poll_s)
            try:
                health = self.peers.hive(node).health(self._timing.hive_connect_timeout_s)
            except (TransportFailure, NotAHive):
                health = None
            is_ours = health is not None and (process.pid is None or health.owner == self.owned.identity)
            # Another hive may be there only until it ends, and ours until it finds the port taken.
            reason = None if is_ours else launcher.failure(node)
            if health is not None and health.status != STOPPING and (is_ours or reason is not None):
                self.owned.note(node, health)
                return health
            if reason is not None:
                raise HiveStartFailed(node.ssh_host, reason)
            if time.monotonic() > deadline:
                limit = self._timing.hive_start_timeout_s
                raise HiveStartFailed(node.ssh_host, f"no answer within {limit:g} seconds")

    def _look_up(self, node: Node) -> None:
        try:
            if self.look(node, _LOOKUP_TIMEOUT_S) is not None:
                self.owned.renew(node.node_name)
        except RbeeError as error:
            self._log.info("hive_lookup_failed", message=error.message, node=node.node_name)
