"""The lines a user sees for an error, built from its code and details; one table for all commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rbee import __version__
from rbee.core.errors import RbeeError
from rbee_keeper.failures import KeeperFailure

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class ErrorContext:
    """What the keeper knows beside the error itself."""

    node: str = "localhost"
    queen_host: str = "127.0.0.1"
    config_path: str = ""
    """The config file in use, or where one would be read."""


def error_lines(error: Fields, context: ErrorContext) -> list[str]:
    """Lines for an error object ``{"code","message","details","suggestion"?}``, never empty.

    An error that lacks the details its own form needs is told in the general form.
    """
    details = error.get("details")
    details = details if isinstance(details, Mapping) else {}
    special = _FORMS.get(str(error.get("code")))
    if special is not None:
        try:
            return special(error, details, context)
        except (KeyError, TypeError, ValueError):
            pass
    return _general(error, details, context)


def failure_lines(error: RbeeError | KeeperFailure, context: ErrorContext) -> list[str]:
    """Lines for an exception, whichever side found the failure."""
    if isinstance(error, KeeperFailure):
        suggestion = [f"Suggestion: {error.suggestion}"] if error.suggestion else []
        return [f"Error: {error.message}", *(f"  {line}" for line in error.details), *suggestion]
    return error_lines(error.fields(), context)


def duration(seconds: float) -> str:
    """Whole minutes as minutes, else seconds: ``5 minutes``, ``3 seconds``."""
    whole = round(seconds)
    if whole >= 60 and whole % 60 == 0:
        return _counted(whole // 60, "minute")
    return _counted(whole, "second")


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _suggestion(error: Fields, default: str | None = None) -> list[str]:
    text = error.get("suggestion") or default
    return [f"Suggestion: {text}"] if text else []


def _general(error: Fields, details: Fields, _context: ErrorContext) -> list[str]:
    lines = [f"Error: {error.get('message') or error.get('code') or 'unknown error'}"]
    if details.get("log_path"):
        lines.append(f"  Log: {details['log_path']}")
    if details.get("correlation_id"):
        lines.append(f"  Correlation id: {details['correlation_id']}")
    return lines + _suggestion(error)


def _unknown_node(_error: Fields, details: Fields, _context: ErrorContext) -> list[str]:
    node = details["node"]
    return [
        f"[queen-rbee] ❌ ERROR: Node '{node}' not found in rbee-hive registry",
        "",
        "To add this node, run:",
        f"  rbee-keeper setup add-node --name {node} --ssh-host {node}.home.arpa "
        "--ssh-user <user> --install-path ~/rbee",
    ]


def _connection_timeout(_error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    address = f"{details['host']}:{details['port']}"
    return [
        f"Error: Cannot connect to {address} after {_counted(int(details['attempts']), 'attempt')}",
        f"Suggestion: Check if rbee-hive is running on {context.node}",
    ]


def _memory(error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    resource = "RAM" if details["resource"] == "ram" else "VRAM"
    return [
        f"Error: Insufficient {resource} on {context.node}",
        f"  Required: {int(details['required'])} MB",
        f"  Available: {int(details['available'])} MB",
        *_suggestion(error, "Try a smaller quantized model (Q4 instead of Q8)"),
    ]


def _busy(error: Fields, details: Fields, _context: ErrorContext) -> list[str]:
    retries = int(details["retries"])
    return [
        f"Error: Worker still busy after {retries} {'retry' if retries == 1 else 'retries'}",
        *_suggestion(error, "Wait for current request to complete or use a different node"),
    ]


def _loading_timeout(_error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    stuck = f"(stuck at {int(details['layers_loaded'])}/{int(details['layers_total'])} layers)"
    return [
        f"Error: Model loading timeout after {duration(float(details['elapsed_s']))}",
        f"Worker state: {details['state']} {stuck}",
        f"Suggestion: Check worker logs on {context.node} for errors",
    ]


def _version(_error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    keeper = str(details.get("keeper_version") or __version__)
    other = "rbee-hive" if details.get("hive_version") else "queen-rbee"
    theirs = str(details.get("hive_version") or details["queen_version"])
    lines = ["Error: Version mismatch", f"  rbee-keeper: v{keeper}", f"  {other}: v{theirs}"]
    if _is_older(theirs, keeper):
        where = f"{other} on {context.node}" if other == "rbee-hive" else other
        return [*lines, f"Please upgrade {where} to v{keeper}:", f"  pip install rbee=={keeper}"]
    return [*lines, f"Please upgrade rbee-keeper to v{theirs}:", f"  pip install rbee=={theirs}"]


def _is_older(left: str, right: str) -> bool:
    try:
        return [int(part) for part in left.split(".")] < [int(part) for part in right.split(".")]
    except ValueError:
        return False


def _authentication(_error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    return [
        "Error: Authentication failed",
        f"  Invalid API key for {details.get('host') or context.queen_host}",
        "Check your configuration:",
        f"  {context.config_path}",
    ]


def _backend(error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    return [
        f"Error: Backend '{details['requested']}' is not available on {context.node}",
        f"  Available: {', '.join(str(name) for name in details['available'])}",
        *_suggestion(error),
    ]


def _download_failed(error: Fields, details: Fields, _context: ErrorContext) -> list[str]:
    attempts = _counted(int(details["attempts"]), "attempt")
    return [
        f"Error: Model download failed after {attempts}: {details['last_error']}",
        *_suggestion(error),
    ]


def _invalid_request(error: Fields, details: Fields, context: ErrorContext) -> list[str]:
    errors = details["errors"]
    if len(errors) < 2:
        return _general(error, details, context)
    return ["Error: Invalid request", *(f"  {one['field']}: {one['message']}" for one in errors)]


_FORMS: dict[str, Callable[[Fields, Fields, ErrorContext], list[str]]] = {
    "NODE_NOT_FOUND": _unknown_node,
    "CONNECTION_TIMEOUT": _connection_timeout,
    "VRAM_EXHAUSTED": _memory,
    "ALL_SLOTS_BUSY": _busy,
    "LOADING_TIMEOUT": _loading_timeout,
    "VERSION_MISMATCH": _version,
    "INVALID_API_KEY": _authentication,
    "MISSING_API_KEY": _authentication,
    "BACKEND_UNAVAILABLE": _backend,
    "DOWNLOAD_FAILED": _download_failed,
    "INVALID_REQUEST": _invalid_request,
}
