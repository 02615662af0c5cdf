"""Failures of models: not found, not fetched, not readable, too large."""

from __future__ import annotations

from rbee.core.errors.base import ModelError


class ModelAccessDenied(ModelError):
    code, http_status = "MODEL_ACCESS_DENIED", 403
    default_suggestion = "Accept the model's terms on the hub and set HF_TOKEN"

    def __init__(self, model_ref: str, reason: str | None = None, *, suggestion: str | None = None) -> None:
        text = f"Access to model '{model_ref}' denied" + (f": {reason}" if reason else "")
        super().__init__(text, details={"model_ref": model_ref}, suggestion=suggestion)


class ModelNotFound(ModelError):
    code, http_status = "MODEL_NOT_FOUND", 404
    default_suggestion = "Check the model reference"

    def __init__(self, model_ref: str, reason: str | None = None, *, suggestion: str | None = None) -> None:
        text = f"Model '{model_ref}' not found" + (f": {reason}" if reason else "")
        super().__init__(text, details={"model_ref": model_ref}, suggestion=suggestion)


class ModelIncompatible(ModelError):
    """The file is not a model this engine can run; details name what was found."""

    code, http_status = "MODEL_INCOMPATIBLE", 422


class ModelDamaged(ModelError):
    """A verification found files that are not as they should be; details name the models."""

    code, http_status = "MODEL_DAMAGED", 422

    def __init__(self, damaged: list[str], checked: int, suggestion: str) -> None:
        are = "is" if len(damaged) == 1 else "are"
        super().__init__(
            f"{len(damaged)} of {checked} models {are} damaged: {', '.join(damaged)}",
            details={"damaged": damaged, "checked": checked},
            suggestion=suggestion,
        )


class DownloadFailed(ModelError):
    code, http_status = "DOWNLOAD_FAILED", 502

    def __init__(self, attempts: int, last_error: str) -> None:
        super().__init__(
            f"Model download failed after {attempts} attempts: {last_error}",
            details={"attempts": attempts, "last_error": last_error},
        )


class DownloadTimeout(ModelError):
    code, http_status = "DOWNLOAD_TIMEOUT", 504

    def __init__(self, attempts: int) -> None:
        super().__init__(
            f"Model download stalled in every one of {attempts} attempts", details={"attempts": attempts}
        )


class ChecksumMismatch(ModelError):
    code, http_status = "CHECKSUM_MISMATCH", 502
    default_suggestion = "Try the download again"

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(
            "The downloaded file's digest differs from the source's",
            details={"expected": expected, "actual": actual},
        )


class MemoryExhausted(ModelError):
    """Not enough memory; amounts in MB (MiB), ``resource`` is ``ram`` or ``vram``."""

    code, http_status = "VRAM_EXHAUSTED", 507
    default_suggestion = "Try a smaller quantized model (Q4 instead of Q8)"

    def __init__(
        self, required: int, available: int, resource: str, *, suggestion: str | None = None
    ) -> None:
        super().__init__(
            f"Insufficient {resource.upper()}: need {required} MB, have {available} MB",
            details={"required": required, "available": available, "resource": resource},
            suggestion=suggestion,
        )


class DiskFull(ModelError):
    """Not enough disk; amounts in MB (MiB)."""

    code, http_status = "DISK_FULL", 507
    default_suggestion = "Remove models you no longer need: rbee-keeper models remove MODEL"

    def __init__(self, required: int, available: int) -> None:
        super().__init__(
            f"Insufficient disk space: need {required} MB, have {available} MB",
            details={"required": required, "available": available},
        )
