"""Failures of workers: busy, not ready, lost, failed while generating."""

from __future__ import annotations

from rbee.core.errors.base import Json, WorkerError


class LoadingTimeout(WorkerError):
    code, http_status = "LOADING_TIMEOUT", 408
    default_suggestion = "Check worker logs on the node for errors"

    def __init__(self, state: str, layers_loaded: int, layers_total: int, elapsed_s: float) -> None:
        super().__init__(
            f"Model loading timeout after {elapsed_s:.0f} seconds",
            details={
                "state": state,
                "layers_loaded": layers_loaded,
                "layers_total": layers_total,
                "elapsed_s": round(elapsed_s, 1),
            },
        )


class InferenceFailed(WorkerError):
    code, http_status = "INFERENCE_FAILED", 500

    def __init__(self, worker_id: str, reason: str) -> None:
        super().__init__(f"Inference failed: {reason}", details={"worker_id": worker_id})


class WorkerCrashed(WorkerError):
    code, http_status = "WORKER_CRASHED", 500

    def __init__(
        self, worker_id: str, tokens_generated: int, message: str = "SSE stream closed unexpectedly"
    ) -> None:
        super().__init__(message, details={"worker_id": worker_id, "tokens_generated": tokens_generated})


class WorkerStartFailed(WorkerError):
    code, http_status = "WORKER_START_FAILED", 500
    default_suggestion = "Run rbee-keeper setup install for the node, or see its logs: rbee-keeper logs"

    def __init__(self, reason: str, *, exit_code: int | None = None, log_path: str | None = None) -> None:
        super().__init__(
            f"Worker failed to start: {reason}", details={"exit_code": exit_code, "log_path": log_path}
        )


class AllSlotsBusy(WorkerError):
    """No free slot. The envelope repeats the two counts beside ``details``, as the contract fixes."""

    code, http_status = "ALL_SLOTS_BUSY", 503
    retry_after_s = 1
    default_suggestion = "Wait for current request to complete or use a different node"

    def __init__(self, slots_total: int, slots_busy: int, retries: int | None = None) -> None:
        details: Json = {"slots_total": slots_total, "slots_busy": slots_busy}
        if retries is not None:
            details["retries"] = retries
        super().__init__("Worker is busy, try again later", details=details)

    def fields(self) -> Json:
        repeated = {key: self.details.get(key) for key in ("slots_total", "slots_busy")}
        return {**super().fields(), **repeated}


class WorkerNotReady(WorkerError):
    code, http_status = "WORKER_NOT_READY", 503
    default_suggestion = "Retry when the worker is idle"

    def __init__(self, state: str) -> None:
        super().__init__(f"Worker is not ready (state: {state})", details={"state": state})


class GenerationTimeout(WorkerError):
    code, http_status = "GENERATION_TIMEOUT", 504

    def __init__(self, tokens_generated: int, stall_s: float) -> None:
        super().__init__(f"No token for {stall_s:g} seconds", details={"tokens_generated": tokens_generated})
