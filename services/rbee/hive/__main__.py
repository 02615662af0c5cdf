"""The program ``rbee-hive``: reads arguments and environment, builds the adapters, serves or commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rbee import __version__
from rbee.core.program import run_program

if TYPE_CHECKING:
    from rbee.core.settings import Settings
    from rbee.hive.service import Hive
    from rbee.web.server import Serving

PROGRAM = "rbee-hive"
COMMANDS = {
    "daemon": "serve (the default)",
    "detect": "print backends, devices, memory and disk of this node",
    "status": "print the state of the hive that runs here",
    "models list": "print its models",
    "workers list": "print its workers",
    "workers cleanup": "end workers that an earlier hive left behind",
    "workers stop-all": "end all its workers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    from rbee.core.settings import SettingsError, load_api_key, load_settings, prepare_home, split_address

    environ = dict(os.environ)
    slots = int(options.slots) if (options.slots or "").isdigit() else options.slots
    worker = {"max_parallel_requests": slots}
    pool = {"listen_addr": options.addr, "queen_url": options.queen_url, "worker_host": options.worker_host}
    try:
        settings = load_settings(environ, config=options.config, overrides={"pool": pool, "worker": worker})
        key = load_api_key(settings, environ)
        prepare_home(settings)
    except SettingsError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"the state directory cannot be made: {error}")
    host, port = split_address(settings.pool.listen_addr)
    port = port if options.port is None or options.addr is not None else options.port
    database = Path(options.database).expanduser() if options.database else settings.home / "workers.db"
    if options.command == "daemon":
        return _serve(_Start(settings, key, environ, options.owner, database), host, port)
    from rbee.hive.commands import run_command

    return run_command(options.command, settings, key, environ, host, port, database)


def _serve(start: _Start, host: str, port: int) -> int:
    from rbee.core.logs import configure_logging
    from rbee.core.settings import is_loopback
    from rbee.web.server import bind, run_daemon

    if start.key is None and not is_loopback(host):
        return _fail(
            f"{host} is not a loopback address and no API key is configured; "
            "set RBEE_API_KEY or auth.api_key_file"
        )
    configure_logging(start.settings.log.level, file=start.settings.log_dir / f"{PROGRAM}.log")
    try:
        listener = bind(host, port)
    except OSError as error:
        return _fail(f"cannot listen on {host}:{port}: {error.strerror}")
    return run_daemon(PROGRAM, listener, start.build)


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return 1


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="The pool manager of one node: models and workers.",
        epilog="commands: " + "; ".join(f"{name}: {text}" for name, text in COMMANDS.items()),
    )
    parser.add_argument("command", nargs="*", default=[], metavar="COMMAND", help="see below")
    parser.add_argument("--addr", metavar="HOST:PORT", help="address to listen on (default 127.0.0.1:9200)")
    parser.add_argument("--port", "-p", type=_port, help="port to listen on, where --addr is not given")
    parser.add_argument("--config", "-c", metavar="FILE", help="config file")
    parser.add_argument("--database", "-d", metavar="FILE", help="PID journal (default RBEE_HOME/workers.db)")
    parser.add_argument("--owner", metavar="ID", help="queen that owns this hive and renews its lease")
    parser.add_argument("--queen-url", metavar="URL", help="queen to tell of workers that are up")
    parser.add_argument("--worker-host", metavar="HOST", help="host part of the URLs of workers")
    parser.add_argument("--slots", metavar="N|auto", help="requests that a worker serves at once (default 1)")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    options = parser.parse_intermixed_args(argv)
    options.command = " ".join(options.command) or "daemon"
    if options.command not in COMMANDS:
        parser.error(f"unknown command '{options.command}'; known: {', '.join(COMMANDS)}")
    return options


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a port from 0 to 65535")
    return int(text)


@dataclass
class _Start:
    """What the serving process builds the hive from."""

    settings: Settings
    key: str | None
    environ: Mapping[str, str]
    owner: str | None
    database: Path

    def build(self, serving: Serving) -> Hive:
        """Runs in the serving process, after gevent has patched it; the heavy imports are here."""
        import socket

        from rbee.core.cores import usable_cores
        from rbee.core.logs import get_logger
        from rbee.core.settings import is_loopback, load_api_key
        from rbee.hive.adapters.device_probe import MachineProbe
        from rbee.hive.adapters.pid_journal import SqlitePidJournal
        from rbee.hive.adapters.provisioner_process import ProvisionerProcess
        from rbee.hive.adapters.queen_notice import HttpQueenNotice
        from rbee.hive.adapters.worker_http import HttpWorkerConnection
        from rbee.hive.adapters.worker_process import ChildWorkerLauncher
        from rbee.hive.devices import Devices
        from rbee.hive.metrics import HiveMetrics
        from rbee.hive.model_fits import ModelFits
        from rbee.hive.models import ModelStore
        from rbee.hive.routes.workers import READY_PATH
        from rbee.hive.service import Hive, HiveFacts, HivePorts
        from rbee.hive.threads import in_thread
        from rbee.hive.worker_ports import claim_port, listening_host, reachable_host, url_host
        from rbee.web.app import correlation_id
        from rbee.web.auth import KeyRing

        settings, log, metrics, keys = self.settings, get_logger(PROGRAM), HiveMetrics(), KeyRing(self.key)
        worker_host = settings.pool.worker_host or (
            "127.0.0.1" if is_loopback(serving.host) else socket.gethostname()
        )
        own_host, listening = reachable_host(serving.host), listening_host(worker_host)
        worker_address = reachable_host(listening)
        probe = MachineProbe(self.environ.get("CUDA_VISIBLE_DEVICES"))
        devices = Devices(probe, settings.hardware, in_thread)
        launcher = ChildWorkerLauncher(
            settings,
            host=worker_host,
            callback_url=f"http://{url_host(own_host)}:{serving.port}{READY_PATH}",
            environ=self.environ,
        )
        ports = HivePorts(
            launcher=launcher,
            connect=lambda port, key: HttpWorkerConnection(
                f"http://{url_host(worker_address)}:{port}", key, correlation_id
            ),
            journal=SqlitePidJournal(
                self.database,
                lambda backup: log.warning("database_moved_aside", message=f"damaged; kept as {backup}"),
            ),
            devices=devices,
            store=ModelStore(
                ProvisionerProcess(settings, self.environ),
                settings.models_dir,
                settings.catalog_db,
                metrics,
                ModelFits(settings).of,
            ),
            notify=(
                HttpQueenNotice(settings.pool.queen_url, lambda: keys.key, correlation_id, log)
                if settings.pool.queen_url
                else None
            ),
        )
        facts = HiveFacts(
            port=serving.port,
            daemon_pid=serving.daemon_pid,
            owner=self.owner,
            worker_url=lambda port: f"http://{url_host(worker_host)}:{port}",
            claim_port=lambda port: claim_port(listening, port),
            request_shutdown=serving.request_shutdown,
            read_key=lambda: load_api_key(settings, self.environ),
            cores=usable_cores(self.environ.get("OMP_NUM_THREADS")),
        )
        hive = Hive(ports, facts, settings, keys, metrics)
        hive.end_orphans()
        return hive


def run() -> NoReturn:
    """The program as a process."""
    run_program(main)


if __name__ == "__main__":
    run()
