"""What every failure of rbee is: a stable code, a message, facts, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
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
