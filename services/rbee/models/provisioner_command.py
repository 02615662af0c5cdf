"""Command lines of the provisioner, built by the hive and parsed by the child; imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rbee.core.errors import InvalidModelRef
from rbee.core.references import ModelRef, parse_model_ref

MODULE = "rbee.models.provisioner"


def fetch_argv(
    ref: ModelRef,
    *,
    models_dir: Path,
    catalog_db: Path,
    attempts: int,
    delays_ms: Sequence[int],
    stall_timeout_s: float,
) -> list[str]:
    """A command that makes a model present on this machine."""
    return [
        *(sys.executable, "-m", MODULE, "fetch"),
        *_where(ref, models_dir, catalog_db),
        *("--attempts", str(attempts)),
        *("--delays-ms", ",".join(str(delay) for delay in delays_ms)),
        *("--stall-timeout-s", f"{stall_timeout_s:g}"),
    ]


def convert_argv(
    ref: ModelRef, path: Path, compute_type: str, *, models_dir: Path, catalog_db: Path
) -> list[str]:
    """A command that converts the GGUF at ``path`` to ``compute_type``."""
    return [
        *(sys.executable, "-m", MODULE, "convert"),
        *_where(ref, models_dir, catalog_db),
        *("--path", str(path)),
        *("--compute-type", compute_type),
    ]


def quality_argv(
    ref: ModelRef, path: Path, compute_type: str, *, models_dir: Path, catalog_db: Path
) -> list[str]:
    """A command that compares the conversion of the GGUF at ``path`` with float32."""
    return [
        *(sys.executable, "-m", MODULE, "quality"),
        *_where(ref, models_dir, catalog_db),
        *("--path", str(path)),
        *("--compute-type", compute_type),
    ]


def verify_argv(ref: ModelRef | None, *, models_dir: Path, catalog_db: Path) -> list[str]:
    """A command that checks one model of the catalog, or all."""
    named = () if ref is None else ("--ref", str(ref))
    where = ("--models-dir", str(models_dir), "--catalog-db", str(catalog_db))
    return [sys.executable, "-m", MODULE, "verify", *named, *where]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; wrong usage ends the process with status 2."""
    parser = argparse.ArgumentParser(prog="python -m " + MODULE, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="make a model present on this machine")
    fetch.add_argument("--attempts", type=int, default=6)
    fetch.add_argument("--delays-ms", type=_delays, default=(100, 200, 400, 800, 1600))
    fetch.add_argument("--stall-timeout-s", type=float, default=60.0)
    convert = commands.add_parser("convert", help="convert a GGUF for the engine")
    convert.add_argument("--path", type=Path, required=True)
    convert.add_argument("--compute-type", required=True)
    quality = commands.add_parser("quality", help="compare a conversion with float32")
    quality.add_argument("--path", type=Path, required=True)
    quality.add_argument("--compute-type", required=True)
    verify = commands.add_parser("verify", help="check models of the catalog against their digests")
    for command in (fetch, convert, quality, verify):
        command.add_argument("--ref", type=_reference, required=command is not verify)
        command.add_argument("--models-dir", type=Path, required=True)
        command.add_argument("--catalog-db", type=Path, required=True)
    return parser.parse_args(argv)


def _where(ref: ModelRef, models_dir: Path, catalog_db: Path) -> tuple[str, ...]:
    return ("--ref", str(ref), "--models-dir", str(models_dir), "--catalog-db", str(catalog_db))


def _reference(text: str) -> ModelRef:
    try:
        return parse_model_ref(text)
    except InvalidModelRef as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _delays(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
