"""Who answers at the queen's URL, told on real sockets within the time limit."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rbee_keeper.queen_connection import is_loopback, listen_address
from rbee_keeper.queen_probe import Presence, probe

HEALTHY = json.dumps({"status": "ok", "version": "0.1.0", "service": "queen-rbee"})


def answer(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@contextmanager
def peer(*pieces: bytes, pause_s: float = 0.0, keeps_open: bool = True) -> Iterator[str]:
    """Something that sends ``pieces`` to whoever connects, without reading, and keeps the connection open."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                for piece in pieces:
                    try:
                        connection.sendall(piece)
                    except OSError:
                        return
                    if over.wait(pause_s):
                        return
                if keeps_open:
                    over.wait(5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_queen_is_known_by_its_service_name_and_told_with_its_version() -> None:
    with peer(answer("200 OK", HEALTHY)) as url:
        found = probe(url, None, 2.0)
    assert (found.presence, found.version) == (Presence.QUEEN, "0.1.0")


def test_an_answer_in_single_bytes_is_read_whole() -> None:
    with peer(*[bytes([b]) for b in answer("200 OK", HEALTHY)]) as url:
        assert probe(url, "k" * 16, 2.0).presence is Presence.QUEEN


def test_a_refused_key_is_another_queens_only_in_our_own_envelope() -> None:
    body = json.dumps({"error": {"code": "INVALID_API_KEY", "message": "x", "details": {}}})
    with peer(answer("401 Unauthorized", body)) as url:
        assert probe(url, "k" * 16, 2.0).presence is Presence.OTHER_KEY
    with peer(answer("401 Unauthorized", "<html>log in</html>")) as url:
        assert probe(url, "k" * 16, 2.0).presence is Presence.STRANGER


@pytest.mark.parametrize(
    "sent",
    [
        answer("200 OK", '{"status":"alive","service":"rbee-hive"}'),
        answer("200 OK", "[]"),
        answer("404 Not Found", "nope"),
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"x" * 70000,
        b"",
    ],
)
def test_anything_else_is_a_stranger(sent: bytes) -> None:
    with peer(sent, keeps_open=False) as url:
        assert probe(url, None, 2.0).presence is Presence.STRANGER


def test_a_peer_that_drips_bytes_cannot_hold_the_probe() -> None:
    began = time.monotonic()
    with peer(*[b"x"] * 100, pause_s=0.05) as url:
        assert probe(url, None, 0.3).presence is Presence.STRANGER
    assert time.monotonic() - began < 2.0


def test_a_closed_port_means_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert probe(f"http://127.0.0.1:{port}", None, 1.0).presence is Presence.NOTHING


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.9.9.9:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://10.0.0.1:8080", False),
        ("http://localhost.home.arpa:8080", False),
        ("http://blep:8080", False),
    ],
)
def test_only_loopback_addresses_are_this_machine(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_the_queen_listens_where_its_url_says() -> None:
    assert listen_address("http://localhost:8081") == "127.0.0.1:8081"
    assert listen_address("http://[::1]:8081") == "[::1]:8081"
    assert listen_address("http://127.0.0.2:8081", free_port=True) == "127.0.0.2:0"
