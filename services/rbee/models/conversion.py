"""Convert a GGUF into a folder that the engine loads, once per content and compute type.

The folder is ``<models_dir>/ct2/<sha256>-<compute type>/``. It appears by a rename when all of it is on
disk, so that a folder of that name is complete or not there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rbee.core.errors import MemoryExhausted, ModelIncompatible
from rbee.models.activation_smoothing import smooth
from rbee.models.compute_types import (
    ComputeType,
    StoredType,
    choose_compute_type,
    estimate_converted_bytes,
    parse_compute_type,
)
from rbee.models.conversion_lock import (
    ConversionProgress,
    OnProgress,
    exclusive_conversion,
    partial_folder,
)
from rbee.models.converted_folders import DESCRIPTION, RECIPE, converted_folder
from rbee.models.ct2_layout import Layout, lay_out
from rbee.models.ct2_writer import write_model
from rbee.models.file_digests import digests_of
from rbee.models.gguf_file import GgufFile, read_gguf
from rbee.models.sample_texts import SampleSet, digest_of, sample_ids
from rbee.models.storage import CONVERTED_FOLDER, MIB, require_disk, sync_folder, write_error
from rbee.models.text import load_text_model
from rbee.models.vocabulary import Vocabulary, build_vocabulary

__all__ = [
    "RECIPE",
    "choose_compute_type",
    "convert",
    "converted_folder",
    "estimate_converted_bytes",
]

logger = logging.getLogger(__name__)

# Enough of each text to see its outliers: a longer calibration changes factors by less than their rounding.
_CALIBRATION_TOKENS_PER_TEXT = 112


def _ignore(_done: int, _total: int) -> None:
    """For callers that do not show a calibration."""


def convert(
    source: Path,
    models_dir: Path,
    compute_type: str,
    *,
    sha256: str | None = None,
    on_progress: OnProgress,
    on_calibrating: OnProgress = _ignore,
) -> Path:
    """Return the converted folder of ``source``, converting it first if there is none.

    ``source`` is the first part of a split model. ``sha256`` is the digest of its content where it is known
    (``file_digests``); else it is hashed. ``on_progress`` gets
    (tensors done, tensors in all), first (0, n) and last (n, n), also when another process does the work,
    and nothing when the folder is there already. ``on_calibrating`` gets (layers done, layers in all) before
    that, where the compute type quantises activations.

    Raises:
        ModelIncompatible: the file cannot be read, or not be converted exactly; names what is in the way.
        DiskFull, MemoryExhausted: with the amounts.
        InvalidRequest: no such compute type.
    """
    chosen = parse_compute_type(compute_type)
    gguf = read_gguf(source)
    digest = sha256 or digests_of(source)[0]
    ready = converted_folder(models_dir, digest, chosen.value)
    if ready is not None:
        return ready
    folder, needed = models_dir / CONVERTED_FOLDER, estimate_converted_bytes(gguf, chosen.value)
    with _write_failures(folder, needed):
        folder.mkdir(parents=True, exist_ok=True)
        progress = ConversionProgress(on_progress, on_calibrating)
        with exclusive_conversion(folder, _key(digest, chosen), progress) as report:
            ready = converted_folder(models_dir, digest, chosen.value)
            if ready is not None:
                report.converting(len(gguf.tensors), len(gguf.tensors))
                return ready
            require_disk(folder, needed)
            return _convert(gguf, digest, chosen, folder, report)


def _key(digest: str, compute_type: ComputeType) -> str:
    return f"{digest}-{compute_type.value}"


@contextmanager
def _write_failures(folder: Path, needed: int) -> Iterator[None]:
    """Turn a failed write or allocation into the error a user can act on."""
    try:
        yield
    except OSError as error:
        raise write_error(error, folder, needed) from error
    except MemoryError as error:
        available = psutil.virtual_memory().available // MIB
        raise MemoryExhausted(-(-needed // MIB), available, "ram") from error


def _convert(
    gguf: GgufFile, digest: str, compute_type: ComputeType, folder: Path, report: ConversionProgress
) -> Path:
    layout, vocabulary = lay_out(gguf), build_vocabulary(gguf)
    if len(vocabulary.tokens) != layout.vocab_size:
        raise ModelIncompatible(
            f"The model has {layout.vocab_size} embeddings and {len(vocabulary.tokens)} tokens",
            details={"embeddings": layout.vocab_size, "tokens": len(vocabulary.tokens)},
            suggestion="Use another file of the model",
        )
    target, partial = folder / _key(digest, compute_type), partial_folder(folder, _key(digest, compute_type))
    try:
        _write_json(partial / "config.json", _engine_config(layout, vocabulary), sort_keys=True)
        _write_json(partial / "vocabulary.json", vocabulary.tokens)
        vocabulary.write(partial)
        description = _description(gguf, digest, compute_type, layout, vocabulary)
        _write_json(partial / DESCRIPTION, description)
        if compute_type.matrix_type is StoredType.INT8:
            layout, description["smoothing"] = _smoothed(gguf, layout, partial, report.calibrating)
        write_model(partial / "model.bin", gguf, layout, compute_type, report.converting)
        others = (path for path in sorted(partial.iterdir()) if path.name != DESCRIPTION)
        description["files"] = {path.name: path.stat().st_size for path in others}
        _write_json(partial / DESCRIPTION, description)
        _sync_files(partial)
        _put_in_place(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _smoothed(
    gguf: GgufFile, layout: Layout, folder: Path, on_calibrating: OnProgress
) -> tuple[Layout, dict[str, Any] | None]:
    """The layout smoothed for int8, and what to say of it; as it was where the texts give no token.

    ``folder`` has the tokenizer already.
    """
    longest = min(_CALIBRATION_TOKENS_PER_TEXT, layout.settings.context_length)
    samples = sample_ids(SampleSet.CALIBRATION, load_text_model(folder), longest)
    texts = [ids for kind in samples.values() for ids in kind]
    if not texts:
        logger.warning("%s is not smoothed: its tokenizer knows none of the sample texts", gguf.path.name)
        return layout, None
    smoothing = smooth(gguf, layout, texts, on_calibrating)
    calibration = {"sha256": digest_of(SampleSet.CALIBRATION), "tokens": sum(map(len, texts))}
    return smoothing.layout, {**smoothing.description(), "calibration": calibration}


def _engine_config(layout: Layout, vocabulary: Vocabulary) -> dict[str, Any]:
    """The engine's config.json. It adds a token it does not find in the vocabulary, so all must be there."""
    bos, eos, unknown = vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.unknown_token_id
    eos = eos if eos is not None else next(iter(vocabulary.stop_token_ids), 0)
    bos = bos if bos is not None else eos
    unknown = unknown if unknown is not None else eos
    tokens = vocabulary.tokens
    special = {"bos_token": tokens[bos], "eos_token": tokens[eos], "unk_token": tokens[unknown]}
    return {**layout.config, **special}


def _description(
    gguf: GgufFile, digest: str, compute_type: ComputeType, layout: Layout, vocabulary: Vocabulary
) -> dict[str, Any]:
    return {
        "recipe": RECIPE,
        "source_sha256": digest,
        "source_size_bytes": gguf.size_bytes,
        "architecture": gguf.architecture,
        "quantization": gguf.quantization,
        "compute_type": compute_type.value,
        "context_length": layout.settings.context_length,
        "context_limited_by": layout.settings.context_limited_by,
        "block_count": layout.settings.layers,
        "vocab_size": layout.vocab_size,
        "tokenizer": vocabulary.kind.value,
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "stop_token_ids": list(vocabulary.stop_token_ids),
        "add_bos": vocabulary.add_bos,
        "add_space_prefix": vocabulary.add_space_prefix,
        "parameters": gguf.parameters,
    }


def _write_json(path: Path, content: object, *, sort_keys: bool = False) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=sort_keys) + "\n", encoding="utf-8")


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename into place; a folder of an older recipe, or a damaged one, makes room first."""
    if target.exists():
        replaced = partial.with_name(f"{partial.name.removesuffix('.partial')}-replaced.partial")
        os.replace(target, replaced)
        shutil.rmtree(replaced, ignore_errors=True)
    os.replace(partial, target)
    sync_folder(target.parent)
