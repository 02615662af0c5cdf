"""What ssh says, and what the user is told."""

from __future__ import annotations

import pytest

from rbee.queen.adapters.ssh_failures import SshReason, login_failed, reason_of
from rbee.queen.registry import Node

NODE = Node("n", "n.home.arpa", "bee", "/srv/rbee", ssh_port=2222, ssh_key_path="/k/id")


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("ssh: connect to host n port 22: Connection timed out", "Connection timeout"),
        (
            "Connection timed out during banner exchange\nConnection to 1.2.3.4 port 22 timed out",
            "Connection timeout",
        ),
        ("ssh: connect to host n port 22: Operation timed out", "Connection timeout"),
        ("ssh: connect to host n port 22: Connection refused", "Connection refused"),
        ("ssh: connect to host n port 22: No route to host", "Network unreachable"),
        ("ssh: connect to host n port 22: Network is unreachable", "Network unreachable"),
        ("ssh: Could not resolve hostname n: Name or service not known", "Could not resolve hostname"),
        ("bee@n: Permission denied (publickey).", "Permission denied"),
        ("Received disconnect from 1.2.3.4: Too many authentication failures", "Permission denied"),
        ("Host key verification failed.", "Host key verification failed"),
        (
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
            "Host key verification failed",
        ),
        (
            "@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nbee@n: Permission denied (publickey).",
            "Key file permissions too open",
        ),
        ("kex_exchange_identification: Connection closed by remote host", "Connection reset"),
        ("client_loop: send disconnect: Broken pipe", "Connection reset"),
        ("something new", "Command failed"),
        ("", "Command failed"),
    ],
)
def test_a_failure_of_the_client_is_named(stderr: str, reason: str) -> None:
    assert reason_of(255, stderr) == reason


@pytest.mark.parametrize("code", [0, 1, 127])
def test_a_command_that_ran_is_no_failure_of_the_client(code: int) -> None:
    assert reason_of(code, "Permission denied, says the command") is None


@pytest.mark.parametrize("reason", list(SshReason))
def test_every_reason_has_host_reason_and_advice(reason: SshReason) -> None:
    error = login_failed(NODE, reason)
    assert error.details == {"host": "n.home.arpa", "reason": reason}
    assert error.message == f"SSH connection failed: {reason}"
    assert error.suggestion


def test_the_advice_names_what_to_type() -> None:
    assert login_failed(NODE, SshReason.KEY_TOO_OPEN).suggestion == "Run: chmod 600 /k/id"
    assert "ssh-keygen -R '[n.home.arpa]:2222'" in (login_failed(NODE, SshReason.HOST_KEY).suggestion or "")
