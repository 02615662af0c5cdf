"""What a failed ``ssh`` means, read from its messages: one short reason a user can act on."""

from __future__ import annotations

import re
from enum import StrEnum

from rbee.core.errors import SshConnectionFailed
from rbee.queen.registry import Node


class SshReason(StrEnum):
    """Why a login or a command did not work."""

    TIMEOUT = "Connection timeout"
    REFUSED = "Connection refused"
    RESET = "Connection reset"
    UNREACHABLE = "Network unreachable"
    UNRESOLVED = "Could not resolve hostname"
    DENIED = "Permission denied"
    HOST_KEY = "Host key verification failed"
    KEY_MISSING = "Key file not found"
    KEY_TOO_OPEN = "Key file permissions too open"
    NOT_FOUND = "Command not found"
    CLIENT_MISSING = "SSH client not found"
    FAILED = "Command failed"


RETRYABLE = frozenset({SshReason.TIMEOUT, SshReason.RESET})
"""Only these may pass by themselves."""
CLIENT_FAILED = 255
"""ssh's own exit code; everything else is the command's."""

_MESSAGES = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed", SshReason.HOST_KEY),
    (r"Could not resolve hostname|Name or service not known", SshReason.UNRESOLVED),
    (r"UNPROTECTED PRIVATE KEY|bad permissions", SshReason.KEY_TOO_OPEN),
    (r"Permission denied|Too many authentication failures|No more authentication", SshReason.DENIED),
    (r"Connection refused", SshReason.REFUSED),
    (r"timed out|Timeout, server .* not responding", SshReason.TIMEOUT),
    (r"No route to host|Network is unreachable|Host is down", SshReason.UNREACHABLE),
    (r"Connection reset|Connection closed|Broken pipe|kex_exchange_identification", SshReason.RESET),
)


def reason_of(exit_code: int, stderr: str) -> SshReason | None:
    """Why ``ssh`` failed; None when it connected and the command ended by itself with a code of its own."""
    if exit_code != CLIENT_FAILED:
        return None
    for pattern, reason in _MESSAGES:
        if re.search(pattern, stderr, re.IGNORECASE):
            return reason
    return SshReason.FAILED


def login_failed(node: Node, reason: SshReason) -> SshConnectionFailed:
    """The error of that reason, with what to do about it."""
    error = SshConnectionFailed(node.ssh_host, str(reason))
    error.suggestion = _advice(node, reason) or error.suggestion
    return error


def _advice(node: Node, reason: SshReason) -> str | None:
    login = f"{node.ssh_user}@{node.ssh_host}"
    return {
        SshReason.TIMEOUT: f"Check that {node.ssh_host} is up and that port {node.ssh_port} can be reached",
        SshReason.REFUSED: f"Check that an SSH server listens on {node.ssh_host} port {node.ssh_port}",
        SshReason.UNREACHABLE: f"Check the network between this machine and {node.ssh_host}",
        SshReason.UNRESOLVED: f"Check the host name {node.ssh_host}",
        SshReason.DENIED: f"Check that {login} accepts this key (chmod 600) and that it needs no passphrase",
        SshReason.HOST_KEY: (
            f"If {node.ssh_host} was reinstalled, forget its old key: "
            f"ssh-keygen -R '[{node.ssh_host}]:{node.ssh_port}' -f RBEE_HOME/known_hosts"
        ),
        SshReason.KEY_MISSING: f"Check the path of the key: {node.ssh_key_path}",
        SshReason.KEY_TOO_OPEN: f"Run: chmod 600 {node.ssh_key_path}",
        SshReason.CLIENT_MISSING: "Install the OpenSSH client on the machine of the queen",
    }.get(reason)
