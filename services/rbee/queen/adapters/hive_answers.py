"""Reading what hives tell into the queen's own records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee.core.lifecycle import WorkerState
from rbee.queen.ports import Capabilities, WorkerRecord


def read_capabilities(body: Mapping[str, Any]) -> Capabilities:
    """What ``/v1/capabilities`` and ``rbee-hive detect`` tell.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    return Capabilities(
        backends=[str(backend) for backend in body["backends"]],
        devices={str(backend): int(count) for backend, count in body["devices"].items()},
        ram_available_mb=int(body["ram_available_mb"]),
        vram_available_mb={int(v["device"]): int(v["available_mb"]) for v in body["vram"]},
        disk_available_mb=int(body["disk_available_mb"]),
        model_sizes={str(ref): int(size) for ref, size in body.get("model_sizes", {}).items()},
    )


def read_worker(entry: Mapping[str, Any]) -> WorkerRecord:
    return WorkerRecord(
        worker_id=str(entry["id"]),
        url=read_url(entry["url"]),
        model_ref=str(entry["model_ref"]),
        backend=str(entry["backend"]),
        device=int(entry["device"]),
        state=WorkerState(entry["state"]),
        slots_total=int(entry["slots_total"]),
        slots_available=int(entry["slots_available"]),
    )


def read_url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("http://"):
        raise ValueError("not an http URL")
    return value
