"""A model file or folder on this node, and what converting it will give."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class ModelFormat(StrEnum):
    GGUF = "gguf"
    CTRANSLATE2 = "ctranslate2"


@dataclass(frozen=True)
class LocalModel:
    """A model that is present. ``digest`` is the GGUF's SHA-256 (hex), None while nobody has computed it."""

    path: Path
    format: ModelFormat
    size_bytes: int
    digest: str | None = None


@dataclass(frozen=True)
class ConversionPlan:
    """The compute type a model will run in, and the disk space that its conversion still needs."""

    compute_type: str
    disk_bytes: int


def plan_conversion(
    local: LocalModel, models_dir: Path, setting: str, backend: str, memory_available_bytes: int
) -> ConversionPlan:
    """Choose the compute type for ``worker.compute_type = setting``.

    The model's header is read only when there is no conversion that can tell as much: the library for it
    takes a quarter of a second to load.

    Raises:
        ModelIncompatible: the GGUF cannot be read.
        InvalidRequest: the device does not support the setting.
    """
    if local.format is ModelFormat.CTRANSLATE2:
        # Served as it is: in the type of its own weights unless another one is asked for.
        return ConversionPlan("default" if setting == "auto" else setting, 0)
    from rbee.models.compute_types import choose_compute_type, estimate_converted_bytes
    from rbee.models.converted_folders import converted_folder, parameters_of_converted

    parameters = parameters_of_converted(models_dir, local.digest) if local.digest else None
    if local.digest is not None and parameters is not None:
        weights_bytes = 4 * parameters
        compute_type = choose_compute_type(setting, backend, weights_bytes, memory_available_bytes)
        if converted_folder(models_dir, local.digest, compute_type) is not None:
            return ConversionPlan(compute_type, 0)

    from rbee.models.gguf_file import read_gguf

    header = read_gguf(local.path)
    compute_type = choose_compute_type(setting, backend, header, memory_available_bytes)
    return ConversionPlan(compute_type, estimate_converted_bytes(header, compute_type))
