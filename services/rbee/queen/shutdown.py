"""The queen's life after it listens, and its end: drain tasks, end owned hives, exit."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flask
import gevent
import gevent.socket
import psutil

from rbee.core.errors import RbeeError
from rbee.core.logs import get_logger
from rbee.core.settings import Timing
from rbee.queen.app import Queen
from rbee.queen.fleet import Fleet
from rbee.queen.keepers import OWNER, Keepers
from rbee.queen.ownership import OwnedHive

_POLL_S = 0.05
_PARENT_POLL_S = 0.5
_KILL_WAIT_S = 5.0


class QueenService:
    """The queen as its server runs it.

    Args:
        request_shutdown: begins the cascade as a signal would.
        reload_key: reads the key file again.
        registry_exists: whether the node registry is on disk.
        keeper_pid: an ephemeral queen ends when its standard input is a pipe that closes, or, where it is
            none, with this process.
    """

    def __init__(
        self,
        queen: Queen,
        app: flask.Flask,
        *,
        request_shutdown: Callable[[], None],
        reload_key: Callable[[], None],
        registry_exists: Callable[[], bool],
        keeper_pid: int | None,
    ) -> None:
        self.app: Any = app
        self._queen = queen
        self._request_shutdown = request_shutdown
        self._reload_key = reload_key
        self._registry_exists = registry_exists
        self._keeper_pid = keeper_pid
        self._log = get_logger("queen-rbee")
        self._background: list[gevent.Greenlet] = []

    def listening(self) -> None:
        """Start the background work."""
        work: list[Callable[[], None]] = [self._queen.fleet.owned.keep_leases, self._drop_gone]
        keepers = self._queen.keepers
        if keepers is not None:
            work += [partial(self._watch_owner, keepers), partial(self._outlive_no_keeper, keepers)]
        else:
            work += [self._resume, self._sweep]
        self._background += [gevent.spawn(job) for job in work]

    def _sweep(self) -> None:
        interval_s, spread_s = self._queen.settings.timing.health_probe_interval_s, 0.0
        while True:
            began = time.monotonic()
            try:
                self._queen.scheduler.views.sweep(spread_s)
                self._queen.metrics.sweeps.inc()
            except RbeeError as error:
                self._log.error("registry_unavailable", message=error.message)
            spread_s = interval_s
            gevent.sleep(max(0.0, began + interval_s - time.monotonic()))

    def shut_down(self) -> None:
        """Let running tasks finish, then end every owned hive."""
        queen, timing = self._queen, self._queen.settings.timing
        queen.is_draining = True
        self._log.info("server_shutdown", message="draining", tasks=len(queen.work))
        queen.log_readers.end_all("The queen is shutting down")
        deadline = time.monotonic() + timing.queen_drain_timeout_s
        while len(queen.work) and time.monotonic() < deadline:
            gevent.sleep(_POLL_S)
        queen.work.end_all("The queen is shutting down")
        gevent.killall(self._background, block=False)
        ending = gevent.spawn(end_hives, queen.fleet, queen.fleet.close(), timing)
        gevent.sleep(_POLL_S)
        self._keep_registry()
        ending.join()
        self._queen.transport.close()
        self._log.info("server_shutdown", message="all owned hives are gone")

    def reload(self) -> None:
        self._reload_key()

    def _drop_gone(self) -> None:
        """Workers come and go: what is kept open to those that have gone is closed now and then."""
        while True:
            gevent.sleep(self._queen.settings.timing.lease_renew_s)
            self._queen.fleet.peers.drop_gone()

    def _resume(self) -> None:
        try:
            self._queen.fleet.resume_leases()
        except RbeeError as error:
            self._log.error("registry_unavailable", message=error.message)

    def _keep_registry(self) -> None:
        """An ephemeral queen opens its registry late, yet leaves one behind; its hives end meanwhile."""
        if self._registry_exists():
            return
        try:
            self._queen.nodes.open()
        except RbeeError as error:
            self._log.error("registry_unavailable", message=error.message)

    def _outlive_no_keeper(self, keepers: Keepers) -> None:
        """End by the same cascade as on SIGTERM once no keeper is left."""
        keepers.wait_until_none()
        self._log.info("keeper_gone", message="no keeper of this ephemeral queen is left")
        self._request_shutdown()

    def _watch_owner(self, keepers: Keepers) -> None:
        """Notice that the keeper that started this queen is gone, however it ended."""
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
        except OSError:
            is_pipe = False
        if is_pipe:
            while _read_pipe():
                pass
        else:
            while self._keeper_pid and psutil.pid_exists(self._keeper_pid):
                gevent.sleep(_PARENT_POLL_S)
        keepers.leave(OWNER)


def _read_pipe() -> bytes:
    gevent.socket.wait_read(0)
    return os.read(0, 1024)


def end_hives(fleet: Fleet, owned: list[OwnedHive], timing: Timing) -> None:
    """End hives in parallel: SIGTERM, their own cascade, and SIGKILL for what outlives it."""
    deadline = time.monotonic() + timing.queen_shutdown_timeout_s
    gevent.joinall([gevent.spawn(_end_hive, fleet, hive, timing, deadline) for hive in owned])


def _end_hive(fleet: Fleet, hive: OwnedHive, timing: Timing, deadline: float) -> None:
    log = get_logger("queen-rbee").bind(node=hive.node.node_name, pid=hive.pid)
    launcher = fleet.launcher_for(hive.node)
    try:
        with gevent.Timeout(timing.shutdown_ack_timeout_s, False):
            launcher.signal(hive.node, hive.pid, signal.SIGTERM)
        if launcher.wait_gone(hive.node, hive.pid, max(0.0, deadline - time.monotonic())):
            log.info("hive_ended", message="hive process is gone")
            return
        log.warning("hive_killed", message="outlived its cascade", signal="SIGKILL")
        launcher.signal(hive.node, hive.pid, signal.SIGKILL)
        launcher.wait_gone(hive.node, hive.pid, _KILL_WAIT_S)
    except RbeeError as error:
        # Its lease ends it: nobody renews it any more.
        log.warning("hive_end_failed", message=error.message)
