"""A model file or folder on this node, and what converting it will give."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.models.memory_fit import ModelShape


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
    """How a model will run: its compute type, the disk its conversion still needs, and its shape."""

    compute_type: str
    disk_bytes: int
    shape: ModelShape


def plan_conversion(
    local: LocalModel, models_dir: Path, setting: str, backend: str, memory_available_bytes: int
) -> ConversionPlan:
    """Choose the compute type for ``worker.compute_type = setting``.

    The model's header is read only when there is no conversion that can tell as much: the library for it
    takes a quarter of a second to load.

    Raises:
        ModelIncompatible: the model cannot be read, or its GGUF not be converted.
        InvalidRequest: the device does not support the setting.
    """
    from rbee.models.model_shape import AS_STORED, shape_of_folder, shape_of_gguf

    if local.format is ModelFormat.CTRANSLATE2:
        # Served as it is: in the type of its own weights unless another one is asked for.
        compute_type = AS_STORED if setting == "auto" else setting
        return ConversionPlan(compute_type, 0, shape_of_folder(local.path, backend))
    from rbee.models.compute_types import choose_compute_type, estimate_converted_bytes
    from rbee.models.converted_folders import converted_folder, parameters_of_converted

    parameters = parameters_of_converted(models_dir, local.digest) if local.digest else None
    if local.digest is not None and parameters is not None:
        weights_bytes = 4 * parameters
        compute_type = choose_compute_type(setting, backend, weights_bytes, memory_available_bytes)
        folder = converted_folder(models_dir, local.digest, compute_type)
        if folder is not None:
            return ConversionPlan(compute_type, 0, shape_of_folder(folder, backend))

    from rbee.models.gguf_file import read_gguf

    header = read_gguf(local.path)
    compute_type = choose_compute_type(setting, backend, header, memory_available_bytes)
    disk_bytes = estimate_converted_bytes(header, compute_type)
    return ConversionPlan(compute_type, disk_bytes, shape_of_gguf(header))
