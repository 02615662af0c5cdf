"""One exception tree for every failure a user can meet: code, HTTP status, details, suggestion.

    RbeeError
    ├── RequestError      the caller can mend it (4xx)
    ├── NodeError         a node or its hive failed (502, 503, 504)
    ├── ModelError        a model cannot be had, read or used
    ├── WorkerError       a worker is busy, loading, lost or failing
    └── InternalError     a defect of ours (500)

Every class names one code of the table in docs/errors.md. On the wire an error is the envelope
``{"error": {"code", "message", "details", "suggestion"?}}``, built by ``RbeeError.envelope`` and read
back by ``error_from_fields``, so that a code keeps its meaning through every hop.
"""

from __future__ import annotations

from rbee.core.errors.base import (
    InternalError,
    Json,
    ModelError,
    NodeError,
    RbeeError,
    RequestError,
    WorkerError,
)
from rbee.core.errors.model import (
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    DownloadTimeout,
    MemoryExhausted,
    ModelAccessDenied,
    ModelDamaged,
    ModelIncompatible,
    ModelNotFound,
)
from rbee.core.errors.node import (
    BadHiveResponse,
    ConnectionTimeout,
    HiveStartFailed,
    QueueFull,
    ServiceUnavailable,
    SshConnectionFailed,
)
from rbee.core.errors.request import (
    BackendUnavailable,
    DeviceUnavailable,
    DownloadNotFound,
    InvalidApiKey,
    InvalidBackend,
    InvalidModelRef,
    InvalidRequest,
    LeaseHeld,
    MethodNotAllowed,
    MissingApiKey,
    ModelInUse,
    NodeCordoned,
    NodeExists,
    NodeNotFound,
    NodeProtected,
    NotFound,
    PayloadTooLarge,
    RequestCanceled,
    RequestConflict,
    RequestTimeout,
    TooManyRequests,
    VersionMismatch,
    WorkerAlreadyRegistered,
    WorkerNotFound,
)
from rbee.core.errors.table import (
    RelayedError,
    error_from_fields,
    error_table,
)
from rbee.core.errors.worker import (
    AllSlotsBusy,
    GenerationTimeout,
    InferenceFailed,
    LoadingTimeout,
    WorkerCrashed,
    WorkerNotReady,
    WorkerStartFailed,
)

__all__ = [
    "AllSlotsBusy",
    "BackendUnavailable",
    "BadHiveResponse",
    "ChecksumMismatch",
    "ConnectionTimeout",
    "DeviceUnavailable",
    "DiskFull",
    "DownloadFailed",
    "DownloadNotFound",
    "DownloadTimeout",
    "GenerationTimeout",
    "HiveStartFailed",
    "InferenceFailed",
    "InternalError",
    "InvalidApiKey",
    "InvalidBackend",
    "InvalidModelRef",
    "InvalidRequest",
    "Json",
    "LeaseHeld",
    "LoadingTimeout",
    "MemoryExhausted",
    "MethodNotAllowed",
    "MissingApiKey",
    "ModelAccessDenied",
    "ModelDamaged",
    "ModelError",
    "ModelInUse",
    "ModelIncompatible",
    "ModelNotFound",
    "NodeCordoned",
    "NodeError",
    "NodeExists",
    "NodeNotFound",
    "NodeProtected",
    "NotFound",
    "PayloadTooLarge",
    "QueueFull",
    "RbeeError",
    "RelayedError",
    "RequestCanceled",
    "RequestConflict",
    "RequestError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SshConnectionFailed",
    "TooManyRequests",
    "VersionMismatch",
    "WorkerAlreadyRegistered",
    "WorkerCrashed",
    "WorkerError",
    "WorkerNotFound",
    "WorkerNotReady",
    "WorkerStartFailed",
    "error_from_fields",
    "error_table",
]
