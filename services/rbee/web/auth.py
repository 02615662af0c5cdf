"""Who may call: one bearer key per service, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import re

from rbee.core.errors import InvalidApiKey, MissingApiKey

_WELL_FORMED = re.compile(r"Bearer ([\x21-\x7e]+)")
_HEADER_LIMIT = 8192


class KeyRing:
    """The key of a service, replaceable while it runs (SIGHUP)."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    @property
    def is_required(self) -> bool:
        return self._key is not None

    @property
    def key(self) -> str | None:
        """The key in force, for calls to services that share it."""
        return self._key

    def replace(self, key: str | None) -> None:
        self._key = key

    def check(self, header: str | None, *, public: bool = False) -> None:
        """Let a request pass or raise.

        Args:
            header: the value of ``Authorization``, None when absent.
            public: the path answers without a header, yet refuses a wrong key.

        Raises:
            MissingApiKey: a key is required and no header came.
            InvalidApiKey: the header is malformed or carries another key.
        """
        if self._key is None or (public and header is None):
            return
        if header is None:
            raise MissingApiKey()
        if not is_bearer_of(header, self._key):
            raise InvalidApiKey()


def is_bearer_of(header: str, key: str) -> bool:
    """Whether ``header`` is exactly ``Bearer <key>``; takes the same time for every wrong key."""
    match = _WELL_FORMED.fullmatch(header) if len(header) <= _HEADER_LIMIT else None
    given = match.group(1) if match else ""
    return hmac.compare_digest(given.encode(), key.encode())
