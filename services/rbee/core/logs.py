"""Structured logs: one JSON object per line, redacted, with the correlation id of the request."""

from __future__ import annotations

import contextvars
import hashlib
import json
import logging
import logging.handlers
import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rbee.core.clock import utc_iso

LEVELS = {
    "mute": logging.CRITICAL + 10,
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
ROTATE_BYTES = 10 * 1024 * 1024
ROTATE_KEEP = 3

_SECRETS = (
    (re.compile(r"(?i)\bbearer\s+[^\s\"',;]+"), "Bearer [REDACTED]"),
    (
        re.compile(r"(?i)\b((?:api[_-]?)?key|token|secret|password)(\s*[=:]\s*)(?!\[REDACTED\])[^\s\"',;&]+"),
        r"\1\2[REDACTED]",
    ),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.S),
        "[REDACTED]",
    ),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]+):[^\s/@]+@"), r"\1:[REDACTED]@"),
)
_SUSPICIOUS = re.compile(r"(?i)bearer|key|token|secret|password|begin|://")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f]")


def redact(text: str) -> str:
    """The text without bearer tokens, assigned secrets, private keys and passwords in URLs."""
    if _SUSPICIOUS.search(text) is None:
        return text
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def escape_control(text: str) -> str:
    """Control characters and ANSI sequences as visible escapes, so that one event stays one line."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", text)


def fingerprint(secret: str) -> str:
    """How a key may appear in logs: ``token:`` and six hex digits of its SHA-256."""
    return "token:" + hashlib.sha256(secret.encode()).hexdigest()[:6]


_request: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "request", default=MappingProxyType({})
)
"""What every line written for the current request carries, its ids for one."""


def begin_request(**fields: Any) -> None:
    """Start anew what the lines of this greenlet's request carry."""
    _request.set(fields)


def bind_request(**fields: Any) -> None:
    """Add to what the lines of this greenlet's request carry."""
    _request.set({**_request.get(), **fields})


class EventLogger:
    """Writes events of one component; call it as ``log.info("event_code", message="…", key=value)``.

    It stands on the standard library's logging alone: every process of rbee imports it, and what the larger
    libraries load for it (0.15 s each, three processes in a row) would be waited for before the first token.
    """

    def __init__(self, component: str, bound: Mapping[str, Any]) -> None:
        self._component = component
        self._bound = bound

    def bind(self, **fields: Any) -> EventLogger:
        """A logger that adds ``fields`` to every event."""
        return EventLogger(self._component, {**self._bound, **fields})

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields, exc_info)

    def _write(
        self, level: int, event: str, fields: Mapping[str, Any], error: BaseException | None = None
    ) -> None:
        if not _OWN.isEnabledFor(level):
            return
        trace = None if error is None else (type(error), error, error.__traceback__)
        record = _OWN.makeRecord(_OWN.name, level, "", 0, event, (), trace)
        record.component = self._component
        record.fields = {**_request.get(), **self._bound, **fields}
        _OWN.handle(record)


_OWN = logging.getLogger("rbee")


def get_logger(component: str) -> EventLogger:
    """The logger of a component; may be made before logging is configured."""
    return EventLogger(component, {})


def configure_logging(level: str, *, file: Path | None = None) -> None:
    """Send all logs of this process to ``file`` (rotated, bounded) or, without one, to standard error."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = _RotatingFile(file, maxBytes=ROTATE_BYTES, backupCount=ROTATE_KEEP, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(LEVELS[level], logging.WARNING) if level != "trace" else logging.DEBUG)
    _OWN.setLevel(LEVELS[level])


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """Goes by the size that the file has before a line: the parent formats every line once more for it."""

    def shouldRollover(self, _record: logging.LogRecord) -> bool:
        """Whether the file is full; one that is no file, such as a pipe, never is."""
        if self.stream is None:
            self.stream = self._open()
        facts = os.fstat(self.stream.fileno())
        return stat.S_ISREG(facts.st_mode) and facts.st_size >= self.maxBytes


def render_line(event: Mapping[str, Any]) -> str:
    """One log line: timestamp, level, component, event, then the rest; strings redacted and escaped."""
    line: dict[str, Any] = {
        "timestamp": utc_iso(),
        "level": event.get("level", "info"),
        "component": event.get("component", "rbee"),
        "event": event.get("event", ""),
    }
    line.update({k: v for k, v in event.items() if k not in line})
    return json.dumps({k: _clean(v) for k, v in line.items()}, ensure_ascii=False, default=str)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        if _UUID.fullmatch(value):
            return value
        # json.dumps escapes C0 controls itself; C1 controls and DEL would pass unescaped.
        return re.sub(r"[\x7f-\x9f]", lambda m: f"\\x{ord(m.group()):02x}", redact(value))
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return value


class _JsonLines(logging.Formatter):
    """Our own events, and records of other libraries, as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {"level": record.levelname.lower()}
        if hasattr(record, "fields"):
            event |= {"component": record.component, "event": record.msg, **record.fields}  # type: ignore[attr-defined]
        else:
            event |= {
                "component": record.name,
                "event": "library_log",
                "message": record.getMessage(),
            }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return render_line(event)
