"""Ports for workers: the lowest free one, never promised twice, never one of the daemons'."""

from __future__ import annotations

import io
import socket
import sys

import pytest

from rbee.core.errors import WorkerStartFailed
from rbee.core.settings import Pool, Queen, Settings
from rbee.hive.service import reserved_ports
from rbee.hive.worker_ports import WorkerPorts, can_listen, claim_port, listening_host, reachable_host


def test_ports_are_promised_in_order_and_once() -> None:
    ports = WorkerPorts(8001, 8003, [], lambda _port: io.StringIO())
    assert [ports.reserve() for _ in range(3)] == [8001, 8002, 8003]


def test_a_released_port_is_the_next_again() -> None:
    ports = WorkerPorts(8001, 8003, [], lambda _port: io.StringIO())
    ports.reserve()
    ports.reserve()
    ports.release(8001)
    assert ports.reserve() == 8001


def test_taken_and_reserved_ports_are_skipped() -> None:
    ports = WorkerPorts(
        8001, 8010, {8002, 8003}, lambda port: None if port in (8001, 8004) else io.StringIO()
    )
    assert ports.reserve() == 8005


def test_no_free_port_is_a_failed_start_with_the_range() -> None:
    ports = WorkerPorts(8001, 8002, [], lambda _port: None)
    with pytest.raises(WorkerStartFailed, match="no free port from 8001 to 8002"):
        ports.reserve()


def test_the_ports_of_queen_and_hive_are_never_given_away() -> None:
    settings = Settings(
        queen=Queen(listen_addr="127.0.0.1:8090", local_hive_port=9300),
        pool=Pool(listen_addr="0.0.0.0:9400"),
    )
    assert reserved_ports(settings, 9500) == {8080, 9200, 8090, 9300, 9400, 9500}


@pytest.mark.parametrize("holder_host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_cannot_be_listened_on(holder_host: str) -> None:
    with socket.socket() as holder:
        holder.bind((holder_host, 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        assert not can_listen("127.0.0.1", port)
    assert can_listen("127.0.0.1", port)


def test_a_release_gives_the_claim_back() -> None:
    claim = io.StringIO()
    ports = WorkerPorts(8001, 8003, [], lambda _port: claim)
    ports.release(ports.reserve())
    assert claim.closed
    ports.release(8001)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract socket names are Linux's")
def test_two_hives_of_one_machine_never_claim_the_same_port() -> None:
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    first = claim_port("127.0.0.1", port)
    assert first is not None
    assert claim_port("127.0.0.1", port) is None
    other_address = claim_port("127.0.0.12", port)
    assert other_address is not None
    other_address.close()
    first.close()
    again = claim_port("127.0.0.1", port)
    assert again is not None
    again.close()


def test_a_port_with_a_listener_is_not_claimed() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        assert claim_port("127.0.0.1", holder.getsockname()[1]) is None


@pytest.mark.parametrize(
    ("url_host", "listening", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.12", "127.0.0.12", "127.0.0.12"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("workstation.home.arpa", "0.0.0.0", "127.0.0.1"),
        ("192.0.2.7", "0.0.0.0", "127.0.0.1"),
    ],
)
def test_a_worker_listens_where_its_url_is_served_and_is_reached_from_here(
    url_host: str, listening: str, reached: str
) -> None:
    assert listening_host(url_host) == listening
    assert reachable_host(listening) == reached
