"""The transport of ``MOCK_SSH=1``: nodes are this machine, except hosts that are named as unreachable."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from rbee.queen.adapters.ssh_failures import SshReason, login_failed
from rbee.queen.ports import Completed
from rbee.queen.registry import Node

VARIABLE = "MOCK_SSH"


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for this transport."""
    return environ.get(VARIABLE) == "1"


class MockSsh:
    """Runs the commands of nodes in a local shell."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)

    def address(self, node: Node) -> str:
        # Imported late: this module is asked before the fork, where nothing may load what gevent patches.
        from rbee.core.client import TransportFailure

        if _is_unreachable(node.ssh_host):
            raise TransportFailure("timeout", str(SshReason.TIMEOUT))
        return "127.0.0.1"

    def run(self, node: Node, argv: Sequence[str], timeout_s: float) -> Completed:
        if _is_unreachable(node.ssh_host):
            raise login_failed(node, SshReason.TIMEOUT)
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", shlex.join(argv)],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise login_failed(node, SshReason.FAILED) from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def forget(self, node: Node) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        """Nothing is kept open."""


def _is_unreachable(host: str) -> bool:
    labels = host.lower().rstrip(".").split(".")
    return labels[0] == "unreachable" or labels[-1] == "invalid"
