"""Failures the keeper finds itself, told in the same shape as the errors of the services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class KeeperFailure(Exception):
    """The command cannot go on.

    Args:
        message: what happened, without the word "Error".
        details: further lines, printed indented.
        suggestion: what to do next.
        code: the code of the error table that fits, for ``--json``.
    """

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[str] = (),
        suggestion: str | None = None,
        code: str = "SERVICE_UNAVAILABLE",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.suggestion = suggestion
        self.code = code

    def fields(self) -> dict[str, Any]:
        """The failure as the error object of ``--json``."""
        content: dict[str, Any] = {"code": self.code, "message": self.message, "details": {}}
        if self.suggestion is not None:
            content["suggestion"] = self.suggestion
        return content


class OutputClosed(Exception):
    """Nobody reads standard output any more; the command ends without a word."""
