"""Builds a worker from its arguments and settings, in the serving process that gevent has patched."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbee.core.logs import get_logger
from rbee.core.settings import Settings, SettingsError
from rbee.models.text import load_text_model
from rbee.web.auth import KeyRing
from rbee.web.server import Serving
from rbee.web.sse import OpenStreams
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.adapters.hive_http import HttpHive
from rbee.worker.admission import Admission
from rbee.worker.app import PROGRAM, AppPorts, create_app
from rbee.worker.engine_start import slots_of
from rbee.worker.inference import Workplace
from rbee.worker.loading import LoadingJournal, ModelLoader
from rbee.worker.metrics import Metrics
from rbee.worker.narration import startup_narrator
from rbee.worker.service import Identity, Parts, WorkerService
from rbee.worker.shutdown import Shutdown
from rbee.worker.slots import Slots


def build_service(
    options: argparse.Namespace,
    settings: Settings,
    read_key: Callable[[], str],
    engine: CTranslate2Engine,
    serving: Serving,
) -> WorkerService:
    """The whole worker around ``engine``, which is loading already; ``read_key`` reads the key (again)."""
    _import_tokenizer_library(options.model)
    key = read_key()
    timing = settings.timing
    host = f"[{options.host}]" if ":" in options.host else options.host
    identity = Identity(
        worker_id=options.worker_id,
        model_ref=options.model_ref,
        backend=options.backend,
        device=options.device,
        url=f"http://{host}:{serving.port}",
        pid=serving.daemon_pid,
    )
    log = get_logger(PROGRAM).bind(
        worker_id=identity.worker_id,
        model_ref=identity.model_ref,
        device=f"{identity.backend}:{identity.device}",
    )
    slots = Slots(
        slots_of(settings),
        on_move=lambda old, new: log.info("state", message=f"{old} to {new}", state=str(new)),
    )
    metrics = Metrics()
    metrics.watch(slots, lambda: engine.memory_bytes)
    place = Workplace(
        identity.worker_id, identity.model_ref, engine, metrics, log, stall_s=timing.token_stall_timeout_s
    )
    admission = Admission(place, slots, context_tokens=settings.worker.context_tokens)
    journal = LoadingJournal()
    narrate = startup_narrator(log)
    loading_streams = OpenStreams(PROGRAM, timing.sse_keepalive_s)
    shutdown = Shutdown(
        slots,
        engine,
        admission,
        loading_streams,
        serving,
        log,
        drain_timeout_s=timing.worker_drain_timeout_s,
    )
    keys = KeyRing(key)
    app = create_app(
        AppPorts(
            worker_id=identity.worker_id,
            keys=keys,
            slots=slots,
            engine=engine,
            journal=journal,
            admission=admission,
            metrics=metrics,
            shutdown=shutdown,
            inference_streams=OpenStreams(PROGRAM, timing.sse_keepalive_s),
            loading_streams=loading_streams,
            cancel_ack_s=timing.cancel_ack_timeout_s,
            body_bytes=settings.limits.body_bytes,
            invalid_per_second=settings.limits.invalid_per_second,
        )
    )
    parts = Parts(
        identity=identity,
        slots=slots,
        engine=engine,
        loader=ModelLoader(
            engine, lambda: load_text_model(options.model), journal, narrate, model_name=identity.model_ref
        ),
        journal=journal,
        admission=admission,
        hive=HttpHive(options.callback_url, key, timeout_s=timing.ready_poll_timeout_s),
        serving=serving,
        narrate=narrate,
        log=log,
    )
    return WorkerService(app, parts, shutdown, lambda: _reload_key(keys, read_key, log))


def _import_tokenizer_library(folder: Path) -> None:
    """Done here and not in the thread that opens the tokenizer: see ``CTranslate2Engine.begin_loading``."""
    if (folder / "tokenizer.json").exists():
        import tokenizers  # noqa: F401
    else:
        import sentencepiece  # noqa: F401


def _reload_key(keys: KeyRing, read_key: Callable[[], str], log: Any) -> None:
    try:
        keys.replace(read_key())
    except SettingsError as error:
        log.error("key_reload_failed", message=str(error))
    else:
        log.info("key_reloaded", message="the key file was read again")
