"""The program ``llm-worker-rbee``: reads arguments and environment, builds the adapters, serves."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rbee import __version__
from rbee.core.program import run_program

if TYPE_CHECKING:
    from rbee.web.server import Serving
    from rbee.worker.service import WorkerService

PROGRAM = "llm-worker-rbee"
SPIN_COUNT = "500"
"""How often the engine's threads look again at a barrier before they sleep; set before it is loaded.

By default they spin for so long that on a machine which does anything else, a second worker for one, every
barrier waits for a thread that is not running. Milliseconds per token of a float32 model on two cores, idle:
default 36, 1,000: 36, 300: 38, none (OMP_WAIT_POLICY=passive): 44; beside a load of 6: default over 500,
1,000: 213, 500: 160, 300: 157, none: 154.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    from rbee.core.logs import configure_logging
    from rbee.core.settings import SettingsError, load_settings
    from rbee.web.server import fail_start, run_daemon

    environ = dict(os.environ)
    try:
        settings = load_settings(environ)
        read_key(options.api_key)
    except SettingsError as error:
        return fail_start(str(error))
    configure_logging(settings.log.level)
    if "OMP_WAIT_POLICY" not in environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        return fail_start(f"cannot listen on {options.host}:{options.port}: {error.strerror}")

    def build(serving: Serving) -> WorkerService:
        from rbee.worker.adapters.engine_memory import use_one_heap
        from rbee.worker.engine_start import start_engine

        if "MALLOC_ARENA_MAX" not in environ:
            use_one_heap()
        engine = start_engine(
            options.model,
            settings,
            worker_id=options.worker_id,
            device=options.backend,
            device_index=options.device,
            stated_cores=environ.get("OMP_NUM_THREADS"),
            visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
        )
        from rbee.worker.wiring import build_service

        return build_service(options, settings, lambda: read_key(options.api_key), engine, serving)

    return run_daemon(PROGRAM, listener, build)


def read_key(stated: str) -> str:
    """The key of ``--api-key``: the value itself, or ``@FILE`` with a 0600 file.

    Raises:
        SettingsError: the file or the key is not well-formed.
    """
    from rbee.core.settings import check_key, read_key_file

    return read_key_file(Path(stated[1:])) if stated.startswith("@") else check_key(stated, "--api-key")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket for a worker whose URL names ``host``.

    A name, or an address that another machine translates, is how others reach this one and need not be an
    address of its own: then the worker listens on all of them. It has a key in any case.
    """
    from rbee.web.server import bind

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bind("127.0.0.1" if host == "localhost" else "0.0.0.0", port)  # noqa: S104 (see above)
    try:
        return bind(host, port)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return bind("0.0.0.0" if address.version == 4 else "::", port)  # noqa: S104 (see above)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        PROGRAM, description="One language model on one device. Started by rbee-hive only."
    )
    parser.add_argument("--worker-id", required=True, metavar="ID")
    parser.add_argument(
        "--model", required=True, type=Path, metavar="FOLDER", help="CTranslate2 model folder"
    )
    parser.add_argument("--model-ref", required=True, metavar="REF", help="the reference it was asked for by")
    parser.add_argument("--backend", required=True, choices=["cpu", "cuda"])
    parser.add_argument("--device", required=True, type=int, metavar="INDEX")
    parser.add_argument("--port", required=True, type=_port, metavar="PORT")
    parser.add_argument("--host", required=True, help="host part of the worker's URL")
    parser.add_argument(
        "--callback-url", required=True, metavar="URL", help="the hive's POST /v1/workers/ready"
    )
    parser.add_argument(
        "--api-key", required=True, metavar="KEY", help="the worker's own key, or @FILE (0600)"
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser.parse_args(argv)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a port from 0 to 65535")
    return int(text)


def run() -> NoReturn:
    """The program as a process."""
    run_program(main)


if __name__ == "__main__":
    run()
