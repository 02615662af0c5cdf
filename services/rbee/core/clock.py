"""Times as the wire writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_iso(unix: float | None = None) -> str:
    """ISO-8601 UTC with milliseconds, e.g. ``2026-01-31T08:00:00.000Z``; now when ``unix`` is None."""
    moment = datetime.fromtimestamp(time.time() if unix is None else unix, tz=UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def parse_utc(text: str) -> float:
    """Unix seconds of a time written by ``utc_iso``."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
