"""Reading network failures, whichever HTTP library raised them."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that another attempt may not meet."""


def network_reason(error: BaseException) -> str:
    """A network failure in a few words, without URLs: those may carry credentials in their query."""
    for cause in _causes(error):
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return "Connection timed out"
        if isinstance(cause, OSError) and cause.strerror and cause.errno is not None:
            return cause.strerror
        if isinstance(cause, ConnectionError):
            return "Connection closed by the server"
    return f"Connection failed ({type(error).__name__})"


def is_untrusted(error: BaseException) -> bool:
    """Whether the server's certificate was refused, which another attempt would meet again."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, which gives them or a date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it wraps as cause, context, reason or argument; innermost first."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.append(current)
        linked = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        waiting += [cause for cause in linked if isinstance(cause, BaseException)]
    return reversed(seen)
