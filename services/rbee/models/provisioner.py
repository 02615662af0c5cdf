"""The provisioner: a child process of the hive that does one long piece of work on models, line by line.

    python -m rbee.models.provisioner fetch --ref R --models-dir D --catalog-db DB [--attempts N …]
    python -m rbee.models.provisioner convert --ref R --path P --compute-type T --models-dir D --catalog-db DB
    python -m rbee.models.provisioner quality --ref R --path P --compute-type T --models-dir D --catalog-db DB
    python -m rbee.models.provisioner verify [--ref R] --models-dir D --catalog-db DB

Standard output carries JSON lines only: progress, narration, and as the last one exactly one of
``{"stage":"complete","local_path"}`` (status 0) and ``{"stage":"error","error"}`` (status 1).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from rbee.core.errors import InternalError, ModelDamaged, ModelNotFound, RbeeError, ServiceUnavailable
from rbee.core.processes import die_with_parent
from rbee.models.provisioner_command import parse
from rbee.models.provisioner_events import EventWriter

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog

logger = logging.getLogger("rbee.models.provisioner")


class Stopped(BaseException):
    """SIGTERM or SIGINT: what is half done stays as it is for the next time."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    events = EventWriter(_claim_stdout(), later=_later)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("rbee").setLevel(logging.INFO)
    _end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        path = _COMMANDS[arguments.command](arguments, events)
    except RbeeError as error:
        logger.error("%s failed model_ref=%s code=%s", arguments.command, arguments.ref, error.code)
        events.error(error.fields())
        return 1
    except Stopped:
        events.error(ServiceUnavailable("The provisioner was stopped").fields())
        return 1
    except Exception:
        logger.exception("%s failed model_ref=%s", arguments.command, arguments.ref)
        events.error(InternalError("The provisioner failed unexpectedly; see the hive's log").fields())
        return 1
    events.complete(path)
    return 0


def _fetch(arguments: argparse.Namespace, events: EventWriter) -> Path:
    from rbee.models.fetching import fetch_model
    from rbee.models.providers import provider_for
    from rbee.models.transfers import RetryPolicy, Transfer

    policy = RetryPolicy(arguments.attempts, arguments.delays_ms, arguments.stall_timeout_s)
    return fetch_model(
        arguments.ref,
        provider_for(arguments.ref),
        arguments.models_dir,
        lambda: _open_catalog(arguments),
        Transfer(policy, events),
    )


def _convert(arguments: argparse.Namespace, events: EventWriter) -> Path:
    events.narrate("model_convert", f"Converting {arguments.path.name} to {arguments.compute_type}")
    folder = _converted(arguments, events)
    events.narrate("model_convert", f"Converted {arguments.path.name} to {arguments.compute_type}")
    return folder


def _quality(arguments: argparse.Namespace, events: EventWriter) -> Path:
    from rbee.models.quality import measure_quality

    folder = _converted(arguments, events)
    events.narrate(
        "model_quality", f"Comparing {arguments.path.name} as {arguments.compute_type} with float32"
    )
    report = measure_quality(arguments.path, folder, events.measuring)
    events.measured({"compute_type": arguments.compute_type, **report})
    return folder


def _converted(arguments: argparse.Namespace, events: EventWriter) -> Path:
    from rbee.models.conversion import convert
    from rbee.models.file_digests import digests_of

    catalog = _open_catalog(arguments)
    row = catalog.find(arguments.ref)
    digest = row.digest if row is not None and row.local_path == arguments.path else None
    if digest is None:
        digest, part_digests = digests_of(arguments.path)
        catalog.set_digests(arguments.ref, digest, part_digests)
    return convert(
        arguments.path,
        arguments.models_dir,
        arguments.compute_type,
        sha256=digest,
        on_progress=events.converting,
        on_calibrating=events.calibrating,
    )


def _verify(arguments: argparse.Namespace, events: EventWriter) -> Path:
    from rbee.models.verification import Verification

    catalog = _open_catalog(arguments)
    rows = [row for row in catalog.list() if arguments.ref in (None, row.ref)]
    if arguments.ref is not None and not rows:
        raise ModelNotFound(str(arguments.ref), "it is not in the catalog of this node")
    verification = Verification(catalog, arguments.models_dir, events.verifying)
    verdicts = verification.run(rows, lambda verdict: events.verified(verdict.record()))
    damaged = [verdict for verdict in verdicts if not verdict.is_ok]
    if damaged:
        raise ModelDamaged(
            [verdict.model_ref for verdict in damaged], len(verdicts), damaged[0].problems[0].suggestion
        )
    return Path(arguments.models_dir)


_COMMANDS = {"fetch": _fetch, "convert": _convert, "quality": _quality, "verify": _verify}


def _open_catalog(arguments: argparse.Namespace) -> Catalog:
    from rbee.models.catalog import Catalog

    return Catalog(arguments.catalog_db, arguments.models_dir)


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _claim_stdout() -> TextIO:
    """The real standard output for events; whatever else prints in this process or below goes to stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _end_with_parent() -> None:
    """End when the hive ends. The kernel's signal means the end of the thread that started this process,
    which need not be the end of the hive, so the handler looks.
    """
    parent = os.getppid()

    def _check(_number: int, _frame: FrameType | None) -> None:
        if os.getppid() != parent:
            raise Stopped

    signal.signal(signal.SIGHUP, _check)
    die_with_parent(signal.SIGHUP)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
