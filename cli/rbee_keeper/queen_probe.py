"""Tells within a time limit whether a queen answers at a URL, at the least cost in start-up time.

The request is written by hand: ``requests`` and ``http.client`` cost more to import than the whole probe
takes, and neither limits the time of a peer that answers byte by byte.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

QUEEN_SERVICE = "queen-rbee"
_MAX_ANSWER_BYTES = 65536
_KEY_CODES = ("INVALID_API_KEY", "MISSING_API_KEY")


class Presence(StrEnum):
    """What is at a URL."""

    QUEEN = "queen"
    OTHER_KEY = "other key"
    """A queen that does not accept our key."""
    NOTHING = "nothing"
    """The connection is refused: the port is free."""
    STRANGER = "stranger"
    """Something accepts connections that is no queen, or does not answer in time."""
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class ProbeResult:
    presence: Presence
    version: str | None = None
    reason: str = ""
    is_ephemeral: bool = False
    """A queen that ends with the keepers it serves."""


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a queen's URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def probe(url: str, api_key: str | None, timeout_s: float) -> ProbeResult:
    """Ask ``GET /health``; the whole probe ends within ``timeout_s`` (name resolution aside)."""
    host, port = address_of(url)
    deadline = time.monotonic() + timeout_s
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except ConnectionRefusedError:
        return ProbeResult(Presence.NOTHING, reason="Connection refused")
    except socket.gaierror:
        return ProbeResult(Presence.UNREACHABLE, reason="Could not resolve hostname")
    except TimeoutError:
        return ProbeResult(Presence.UNREACHABLE, reason="Connection timeout")
    except OSError as error:
        return ProbeResult(Presence.UNREACHABLE, reason=error.strerror or str(error))
    with connection:
        try:
            status, body = _ask(connection, f"{host}:{port}", api_key, deadline)
        except TimeoutError:
            return ProbeResult(Presence.STRANGER, reason="no answer in time")
        except (OSError, ValueError):
            return ProbeResult(Presence.STRANGER, reason="an unreadable answer")
    return _judge(status, body)


def _ask(connection: socket.socket, host: str, api_key: str | None, deadline: float) -> tuple[int, bytes]:
    lines = ["GET /health HTTP/1.0", f"Host: {host}", "Accept: application/json", "Connection: close"]
    if api_key is not None:
        lines.append(f"Authorization: Bearer {api_key}")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    received = b""
    while not _is_complete(received):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(8192)
        if not piece:
            break
        received += piece
        if len(received) > _MAX_ANSWER_BYTES:
            raise ValueError("too long for a health answer")
    head, _, body = received.partition(b"\r\n\r\n")
    protocol, status, *_ = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not protocol.startswith(b"HTTP/1."):
        raise ValueError("not HTTP")
    return int(status), body


def _is_complete(received: bytes) -> bool:
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":", 1)[1])
    return False


def _judge(status: int, body: bytes) -> ProbeResult:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    if status == 200 and answer.get("service") == QUEEN_SERVICE:
        version = answer.get("version")
        version = version if isinstance(version, str) else None
        return ProbeResult(Presence.QUEEN, version, is_ephemeral=answer.get("ephemeral") is True)
    error = answer.get("error")
    if status == 401 and isinstance(error, dict) and error.get("code") in _KEY_CODES:
        return ProbeResult(Presence.OTHER_KEY)
    name = answer.get("service")
    told = f"it is {name}" if isinstance(name, str) else f"it answered with status {status}"
    return ProbeResult(Presence.STRANGER, reason=told)
