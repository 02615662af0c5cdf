"""Where the state of rbee lives on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def state_home(environ: Mapping[str, str]) -> Path:
    """``RBEE_HOME``, else ``~/.rbee``; absolute, and not necessarily there yet."""
    stated = environ.get("RBEE_HOME") or Path(environ.get("HOME", "~")) / ".rbee"
    return Path(stated).expanduser().absolute()
