"""The commands of ``rbee-hive`` besides serving: they look at this node, or ask the hive that runs on it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rbee.core.client import ServiceClient, TransportFailure
from rbee.core.errors import RbeeError
from rbee.core.logs import configure_logging
from rbee.core.settings import Settings
from rbee.hive.worker_ports import reachable_host, url_host

STOP_TIMEOUT_S = 60.0
_POLL_S = 0.2


def run_command(
    command: str,
    settings: Settings,
    key: str | None,
    environ: Mapping[str, str],
    host: str,
    port: int,
    database: Path,
) -> int:
    """Carry out one of ``__main__.COMMANDS``; the exit code. Results go to standard output as JSON."""
    configure_logging("error")
    client = ServiceClient(f"http://{url_host(reachable_host(host))}:{port}", api_key=key)
    try:
        if command == "detect":
            _print(_detect(settings, environ))
        elif command == "status":
            _print({"url": client.base_url, **client.get("/v1/health")})
        elif command == "models list":
            _print(client.get("/v1/models"))
        elif command == "workers list":
            _print(client.get("/v1/workers/list"))
        elif command == "workers cleanup":
            _print({"ended": _clean_up(database, settings.run_dir, client, port)})
        else:
            _print({"ended": _stop_all(client)})
    except TransportFailure as failure:
        return _fail(f"no hive answers at {client.base_url}: {failure.reason}")
    except RbeeError as error:
        return _fail(error.message)
    finally:
        client.close()
    return 0


def _detect(settings: Settings, environ: Mapping[str, str]) -> Any:
    from rbee.hive.adapters.device_probe import MachineProbe
    from rbee.hive.devices import Devices

    probe = MachineProbe(environ.get("CUDA_VISIBLE_DEVICES"))
    found = Devices(probe, settings.hardware).capabilities(settings.pool.name, settings.models_dir)
    return {**found, "model_sizes": _model_sizes(settings.catalog_db)}


def _model_sizes(catalog_db: Path) -> dict[str, int]:
    """Bytes of the models in this node's catalog, by reference; none where it cannot be read."""
    if not catalog_db.is_file():
        return {}
    from rbee.models.catalog import Catalog

    try:
        return {str(row.ref): row.size_bytes for row in Catalog(catalog_db).list()}
    except RbeeError:
        return {}


def _clean_up(database: Path, run_dir: Path, client: ServiceClient, port: int) -> list[str]:
    """End the orphans of this port; workers of a hive that runs are none."""
    from rbee.core.logs import get_logger
    from rbee.hive.adapters.pid_journal import SqlitePidJournal
    from rbee.hive.adapters.worker_process import remove_key
    from rbee.hive.journal import end_orphans

    if not database.exists():
        return []
    journal = SqlitePidJournal(database)
    try:
        rows = journal.rows(port)
        try:
            living = {worker["id"] for worker in client.get("/v1/workers/list")["workers"]}
        except TransportFailure as failure:
            if failure.kind != "refused":
                raise
            living = set()
        orphans = [row for row in rows if row.worker_id not in living]
        return end_orphans(journal, orphans, partial(remove_key, run_dir), get_logger("rbee-hive"))
    finally:
        journal.close()


def _stop_all(client: ServiceClient) -> list[str]:
    """End all workers of the running hive and wait until they are gone."""
    asked = [worker["id"] for worker in client.get("/v1/workers/list")["workers"]]
    for worker_id in asked:
        try:
            client.delete(f"/v1/workers/{worker_id}")
        except RbeeError as error:
            if error.code != "WORKER_NOT_FOUND":
                raise
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while client.get("/v1/workers/list")["workers"] and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return asked


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return 1
