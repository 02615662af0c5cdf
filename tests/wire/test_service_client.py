"""HTTP between our own programs: what each kind of failure below HTTP is called, and errors as exceptions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from rbee.core.client import ServiceClient, TransportFailure
from rbee.core.errors import AllSlotsBusy, RelayedError

Answer = Callable[[socket.socket], None]


@pytest.fixture
def heads() -> list[bytes]:
    """The requests that arrived."""
    return []


@pytest.fixture
def serve(heads: list[bytes]) -> Iterator[Callable[[Answer], str]]:
    """Starts a server that reads one request's head per connection and then does as it is told."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65536)
                    heads.append(head)
                    answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(5)


def reply(status: str, body: bytes, kind: str = "application/json") -> Answer:
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close"
    head = f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n"
    return lambda connection: connection.sendall(head.encode() + body)


def failure_of(url: str, timeout_s: float = 2) -> TransportFailure:
    client = ServiceClient(url)
    with pytest.raises(TransportFailure) as caught:
        client.get("/v1/health", timeout_s=timeout_s)
    client.close()
    return caught.value


def test_a_port_nobody_listens_on_is_refused() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        failure = failure_of(f"http://127.0.0.1:{reserved.getsockname()[1]}")
    assert (failure.kind, failure.reason) == ("refused", "Connection refused")


def test_a_service_that_says_nothing_times_out(serve: Callable[[Answer], str]) -> None:
    released = threading.Event()
    url = serve(lambda _connection: released.wait(5) and None)
    failure = failure_of(url, timeout_s=0.2)
    released.set()
    assert (failure.kind, failure.reason) == ("timeout", "Connection timeout")


def test_a_connection_that_is_cut_is_a_reset(serve: Callable[[Answer], str]) -> None:
    assert failure_of(serve(lambda _connection: None)).kind == "reset"


def test_an_answer_that_is_no_json_is_unreadable(serve: Callable[[Answer], str]) -> None:
    assert failure_of(serve(reply("200 OK", b"{oops"))).kind == "unreadable"


def test_a_name_that_does_not_exist_is_unresolved() -> None:
    assert failure_of("http://no-such-host.invalid:9200").kind == "unresolved"


def test_an_envelope_becomes_the_exception_of_its_code(serve: Callable[[Answer], str]) -> None:
    body = b'{"error":{"code":"ALL_SLOTS_BUSY","message":"busy","details":{"slots_total":1,"slots_busy":1}}}'
    client = ServiceClient(serve(reply("503 Service Unavailable", body)))
    with pytest.raises(AllSlotsBusy) as caught:
        client.post("/v1/inference", {"prompt": "x"})
    assert caught.value.details == {"slots_total": 1, "slots_busy": 1}
    client.close()


def test_an_error_page_of_somebody_else_is_told_by_its_status(serve: Callable[[Answer], str]) -> None:
    client = ServiceClient(serve(reply("502 Bad Gateway", b"<html>", "text/html")))
    with pytest.raises(RelayedError, match="status 502"):
        client.stream("GET", "/v2/logs")
    client.close()


def test_a_stream_gives_events_as_they_come_and_tells_a_break(serve: Callable[[Answer], str]) -> None:
    def cut(connection: socket.socket) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b'10\r\ndata: {"token":1}')

    client = ServiceClient(serve(cut))
    with client.stream("GET", "/x") as events, pytest.raises(TransportFailure):
        list(events)
    client.close()


def test_query_prefix_key_and_headers_reach_the_service(
    serve: Callable[[Answer], str], heads: list[bytes]
) -> None:
    url = serve(reply("200 OK", b'{"ok":true}'))
    client = ServiceClient(f"{url}/fleet/", api_key="k" * 16, correlation_id=lambda: "c-1")
    assert client.get("/v2/logs", params={"node": "a b", "lines": 3}) == {"ok": True}
    client.close()
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /fleet/v2/logs?node=a+b&lines=3 HTTP/1.1"
    assert {f"Authorization: Bearer {'k' * 16}", "X-Correlation-ID: c-1", "X-Rbee-Version: 0.1.0"} <= set(
        lines
    )
