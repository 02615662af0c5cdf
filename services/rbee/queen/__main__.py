"""The program ``queen-rbee``: reads arguments and environment, builds the adapters, serves."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rbee import __version__
from rbee.core.home import state_home
from rbee.core.program import run_program
from rbee.queen.adapters.hive_child import HiveChild, prestart_hive
from rbee.queen.registry import LOCAL_ADDRESS

if TYPE_CHECKING:
    from rbee.core.settings import Settings
    from rbee.queen.adapters.http_peers import HttpPeers
    from rbee.queen.ports import NodeStore, NodeTransport
    from rbee.queen.shutdown import QueenService
    from rbee.web.auth import KeyRing
    from rbee.web.server import Serving

PROGRAM = "queen-rbee"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    environ = dict(os.environ)
    hive = None
    if options.prestart_hive is not None:
        # Before everything else: its start and ours then run side by side.
        hive = prestart_hive(
            LOCAL_ADDRESS, options.prestart_hive, state_home(environ), environ, options.config
        )
    try:
        return _serve(options, environ, hive)
    finally:
        if hive is not None:
            hive.end()


def _serve(options: argparse.Namespace, environ: Mapping[str, str], hive: HiveChild | None) -> int:
    from rbee.core.logs import configure_logging
    from rbee.core.settings import (
        SettingsError,
        is_loopback,
        load_api_key,
        load_settings,
        prepare_home,
        split_address,
    )
    from rbee.queen.adapters import mock_ssh
    from rbee.web.server import bind, fail_start, run_daemon

    overrides = {"queen": {"listen_addr": options.addr}}
    try:
        settings = load_settings(environ, config=options.config, overrides=overrides)
        key = load_api_key(settings, environ)
        prepare_home(settings)
    except SettingsError as error:
        return fail_start(str(error))
    except OSError as error:
        return fail_start(f"the state directory cannot be made: {error}")
    host, port = split_address(settings.queen.listen_addr)
    port = port if options.port is None else options.port
    if key is None and not is_loopback(host):
        return fail_start(
            f"{host} is not a loopback address and no API key is configured; "
            "set RBEE_API_KEY or auth.api_key_file"
        )
    if mock_ssh.is_wanted(environ) and not is_loopback(host):
        return fail_start(f"{mock_ssh.VARIABLE} is for loopback addresses only, not for {host}")
    configure_logging(settings.log.level, file=settings.log_dir / f"{PROGRAM}.log")
    try:
        listener = bind(host, port)
    except OSError as error:
        return fail_start(f"cannot listen on {host}:{port}: {error.strerror}")
    keeper_pid = os.getppid() if options.ephemeral else None
    start = _Start(settings, key, environ, options, keeper_pid, hive)
    return run_daemon(PROGRAM, listener, start.build)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(PROGRAM, description="The orchestrator of an rbee fleet.")
    parser.add_argument("command", nargs="?", choices=["daemon"], default="daemon", help=argparse.SUPPRESS)
    parser.add_argument("--addr", metavar="HOST:PORT", help="address to listen on")
    parser.add_argument("--port", "-p", type=_port, help="port to listen on (default 8080)")
    parser.add_argument("--config", "-c", metavar="FILE", help="config file")
    parser.add_argument(
        "--database", "-d", metavar="FILE", help="node registry (default RBEE_HOME/beehives.db)"
    )
    parser.add_argument("--ephemeral", action="store_true", help="end when the keeper that started it ends")
    parser.add_argument(
        "--prestart-hive",
        metavar="PORT",
        type=_port,
        help="start this machine's hive on PORT at once: a task is coming",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser.parse_args(argv)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a port from 0 to 65535")
    return int(text)


@dataclass
class _Start:
    """What the serving process builds the queen from."""

    settings: Settings
    key: str | None
    environ: Mapping[str, str]
    options: argparse.Namespace
    keeper_pid: int | None
    prestarted: HiveChild | None

    def build(self, serving: Serving) -> QueenService:
        """Runs in the serving process, after gevent has patched it; the heavy imports are here."""
        from rbee.queen.adapters.http_peers import HttpPeers
        from rbee.queen.adapters.local_hive import LocalHive
        from rbee.queen.adapters.registered import Registered
        from rbee.queen.adapters.remote_hive import RemoteHive, TransportLogin
        from rbee.queen.app import Queen, create_app
        from rbee.queen.fleet import Fleet
        from rbee.queen.identity import load_identity
        from rbee.queen.keepers import Keepers
        from rbee.queen.registry import Nodes, builtin_node
        from rbee.queen.shutdown import QueenService
        from rbee.web.app import correlation_id
        from rbee.web.auth import KeyRing

        settings = self.settings
        identity = load_identity(settings.home / "queen.id")
        local = builtin_node(settings.queen.local_hive_port)
        local_hive = LocalHive(identity, self.environ, self.options.config)
        keys, transport = KeyRing(self.key), self._transport()
        peers = HttpPeers(
            lambda: keys.key,
            lambda node: node.ssh_host if node.builtin else transport.address(node),
            correlation_id,
        )
        remote_hive = RemoteHive(transport, identity, settings.remote.binary_path)
        nodes = Nodes(self._open_store, local, any_registered=Registered(self._database).has_nodes)
        fleet = Fleet(
            nodes,
            peers,
            lambda node: local_hive if node.builtin else remote_hive,
            identity,
            __version__,
            settings.timing,
        )
        if self.prestarted is not None:
            fleet.begin_start(local, local_hive.adopt(self.prestarted))
        if self.keeper_pid is None:
            nodes.open()
        login = TransportLogin(transport, settings.timing.ssh_connect_timeout_s)
        keepers = None if self.keeper_pid is None else Keepers(serving.daemon_pid)
        queen = Queen(settings, __version__, keys, nodes, fleet, transport, login, keepers)
        return QueenService(
            queen,
            create_app(queen),
            request_shutdown=serving.request_shutdown,
            reload_key=lambda: self._reload_key(keys, peers),
            registry_exists=self._database.is_file,
            keeper_pid=self.keeper_pid,
        )

    @property
    def _database(self) -> Path:
        named = self.options.database
        return Path(named).expanduser() if named else self.settings.home / "beehives.db"

    def _open_store(self) -> NodeStore:
        from rbee.queen.adapters.sqlite_nodes import SqliteNodes

        return SqliteNodes(self._database)

    def _transport(self) -> NodeTransport:
        from rbee.core.logs import get_logger
        from rbee.queen.adapters import mock_ssh, openssh

        if mock_ssh.is_wanted(self.environ):
            get_logger(PROGRAM).warning(
                "mock_ssh", message="commands for nodes run on this machine", variable=mock_ssh.VARIABLE
            )
            return mock_ssh.MockSsh(self.environ)
        settings = self.settings
        return openssh.OpenSsh(settings.ssh.command, settings.home, settings.timing, self.environ)

    def _reload_key(self, keys: KeyRing, peers: HttpPeers) -> None:
        from rbee.core.logs import get_logger
        from rbee.core.settings import SettingsError, load_api_key

        try:
            keys.replace(load_api_key(self.settings, self.environ))
        except SettingsError as error:
            get_logger(PROGRAM).error("key_reload_failed", message=str(error))
            return
        peers.forget_all()
        get_logger(PROGRAM).info("key_reloaded", message="the key file was read again")


def run() -> NoReturn:
    """The program as a process."""
    run_program(main)


if __name__ == "__main__":
    run()
