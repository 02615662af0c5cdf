"""What the keeper's exit status means to scripts."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    """Any failure at run time, a stream without its terminal event included."""
    USAGE = 2
    """Unknown command or flag, missing or malformed value."""
    INTERRUPTED = 130
    """Ctrl+C."""
