"""Starts the engine before the rest of the worker is even imported: loading takes longest."""

from __future__ import annotations

import json
from pathlib import Path

from rbee.core.cores import usable_cores
from rbee.core.settings import Settings
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.adapters.engine_memory import MB


def start_engine(
    folder: Path,
    settings: Settings,
    *,
    worker_id: str,
    device: str,
    device_index: int,
    stated_cores: str | None,
    visible_devices: str | None,
) -> CTranslate2Engine:
    """An engine that loads ``folder`` in a native thread; ``stated_cores`` is OMP_NUM_THREADS."""
    engine = CTranslate2Engine(
        folder,
        worker_id=worker_id,
        device=device,
        device_index=device_index,
        compute_type=compute_type(folder, settings.worker.compute_type),
        slots=slots_of(settings),
        visible_devices=visible_devices,
        equal_lengths=settings.worker.batch_lengths == "equal",
        prefix_bytes=settings.worker.prefix_cache_mb * MB,
        cores=usable_cores(stated_cores),
    )
    engine.begin_loading()
    return engine


def slots_of(settings: Settings) -> int:
    """The slots that the hive has chosen; one where nobody has."""
    stated = settings.worker.max_parallel_requests
    return 1 if stated == "auto" else stated


def compute_type(folder: Path, setting: str) -> str:
    """The compute type to load ``folder`` with: what it was converted to, else the setting, else its own."""
    try:
        converted = json.loads((folder / "rbee.json").read_text(encoding="utf-8"))["compute_type"]
    except (OSError, ValueError, KeyError, TypeError):
        converted = None
    if isinstance(converted, str):
        return converted
    return "default" if setting == "auto" else setting
