"""Failures of nodes, their SSH logins and hives, and of a queen that is full or leaving."""

from __future__ import annotations

from rbee.core.errors.base import NodeError


class SshConnectionFailed(NodeError):
    code, http_status = "SSH_CONNECTION_FAILED", 502
    default_suggestion = "Check the key (chmod 600) and that the host can be reached"

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"SSH connection failed: {reason}", details={"host": host, "reason": reason})


class HiveStartFailed(NodeError):
    code, http_status = "HIVE_START_FAILED", 502
    default_suggestion = "Run rbee-keeper setup install for the node, or see its logs"

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(
            f"rbee-hive could not be started on {host}: {reason}", details={"host": host, "reason": reason}
        )


class BadHiveResponse(NodeError):
    code, http_status = "BAD_HIVE_RESPONSE", 502
    default_suggestion = "Restart the hive of that node"

    def __init__(self, host: str, reason: str = "unreadable answer") -> None:
        super().__init__(f"Bad answer from the hive on {host}: {reason}", details={"host": host})


class ConnectionTimeout(NodeError):
    code, http_status = "CONNECTION_TIMEOUT", 503

    def __init__(
        self, host: str, port: int, attempts: int, timeout_s: float, node: str | None = None
    ) -> None:
        super().__init__(
            f"Cannot connect to {host}:{port} after {attempts} attempts",
            details={"host": host, "port": port, "attempts": attempts, "timeout_s": timeout_s},
            suggestion=f"Check if rbee-hive is running on {node or host}",
        )


class QueueFull(NodeError):
    code, http_status = "QUEUE_FULL", 503
    retry_after_s = 1
    default_suggestion = "Try again later"

    def __init__(self, queue_size: int, queue_capacity: int) -> None:
        super().__init__(
            f"Too many open tasks ({queue_size} of {queue_capacity})",
            details={"queue_size": queue_size, "queue_capacity": queue_capacity},
        )


class ServiceUnavailable(NodeError):
    code, http_status = "SERVICE_UNAVAILABLE", 503
