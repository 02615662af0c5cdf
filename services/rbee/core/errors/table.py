"""All errors by their codes, and errors made again from what another service has told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rbee.core.errors.base import InternalError, Json, RbeeError


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
