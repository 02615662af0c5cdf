"""Which TCP port a new worker gets: the lowest that is neither promised, reserved nor taken."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Collection
from typing import Protocol

from rbee.core.errors import WorkerStartFailed

ALL_ADDRESSES = {4: "0.0.0.0", 6: "::"}  # noqa: S104 (workers have keys)


class PortClaim(Protocol):
    """A port that is a hive's own until it is closed."""

    def close(self) -> None: ...


class WorkerPorts:
    """Promises ports to workers, so that two spawns at the same moment get different ones.

    Args:
        first, last: the range, both ends included.
        never: ports of queen and hive.
        claim: takes a port if a worker could listen on it now, else gives None.
    """

    def __init__(
        self, first: int, last: int, never: Collection[int], claim: Callable[[int], PortClaim | None]
    ) -> None:
        self._range = range(first, last + 1)
        self._never = frozenset(never)
        self._claim = claim
        self._promised: dict[int, PortClaim] = {}

    def reserve(self) -> int:
        """A port that is this caller's until it is released.

        Raises:
            WorkerStartFailed: none is free.
        """
        for port in self._range:
            if port in self._never or port in self._promised:
                continue
            claim = self._claim(port)
            if claim is not None:
                self._promised[port] = claim
                return port
        raise WorkerStartFailed(f"no free port from {self._range.start} to {self._range.stop - 1}")

    def release(self, port: int) -> None:
        claim = self._promised.pop(port, None)
        if claim is not None:
            claim.close()


def claim_port(host: str, port: int) -> socket.socket | None:
    """Claim a port among all hives of this machine; None when another has it or somebody listens on it.

    A worker binds its port a moment after it was chosen, and a second hive would choose the same one
    meanwhile. So a hive holds a name in Linux's abstract socket namespace for each port of its workers; the
    kernel drops it with the process. Elsewhere only listeners are seen.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        if sys.platform == "linux":
            claim.bind(f"\0rbee-worker-{host}-{port}")
        if can_listen(host, port):
            return claim
    except OSError:
        pass
    claim.close()
    return None


def listening_host(url_host: str) -> str:
    """The address that a worker listens on whose URL names ``url_host``.

    An address of this machine is taken literally. A name, or an address that another machine translates, is
    only how others reach this one; then the worker listens on all addresses.
    """
    try:
        version = ipaddress.ip_address(url_host).version
    except ValueError:
        return "127.0.0.1" if url_host == "localhost" else ALL_ADDRESSES[4]
    return url_host if can_listen(url_host, 0) else ALL_ADDRESSES[version]


def reachable_host(listening: str) -> str:
    """Where this machine reaches what listens there."""
    return {ALL_ADDRESSES[4]: "127.0.0.1", ALL_ADDRESSES[6]: "::1"}.get(listening, listening)


def can_listen(host: str, port: int) -> bool:
    """Whether a listening socket could be opened; a port in TIME_WAIT is free, as it is for a worker."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def url_host(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
