"""HTTP between our own programs: what each kind of failure below HTTP is called, and errors as exceptions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rbee.core.client import ServiceClient, TransportFailure
from rbee.core.errors import AllSlotsBusy, RelayedError

Answer = Callable[[socket.socket], Any]
Serve = Callable[..., str]


@pytest.fixture
def heads() -> list[bytes]:
    """The requests that arrived."""
    return []


@pytest.fixture
def closed() -> threading.Semaphore:
    """Released once for each connection that the server has closed."""
    return threading.Semaphore(0)


@pytest.fixture
def serve(heads: list[bytes], closed: threading.Semaphore) -> Iterator[Serve]:
    """Starts a server that takes requests without bodies and does with each what it is told next.

    After its last answer it closes the connection; a new connection continues with the next answer.
    """
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(*answers: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        left = list(answers)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    buffer = b""
                    while left:
                        while b"\r\n\r\n" not in buffer:
                            piece = connection.recv(65536)
                            if not piece:
                                break
                            buffer += piece
                        else:
                            head, _, buffer = buffer.partition(b"\r\n\r\n")
                            heads.append(head)
                            if left.pop(0)(connection) is not None:
                                break
                            continue
                        break
                closed.release()

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
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}"
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


def test_a_service_that_says_nothing_times_out(serve: Serve) -> None:
    released = threading.Event()
    url = serve(lambda _connection: released.wait(5) and None)
    failure = failure_of(url, timeout_s=0.2)
    released.set()
    assert (failure.kind, failure.reason) == ("timeout", "Connection timeout")


def test_a_connection_that_is_cut_is_a_reset(serve: Serve) -> None:
    assert failure_of(serve(lambda _connection: None)).kind == "reset"


def test_an_answer_that_is_no_json_is_unreadable(serve: Serve) -> None:
    assert failure_of(serve(reply("200 OK", b"{oops"))).kind == "unreadable"


def test_a_name_that_does_not_exist_is_unresolved() -> None:
    assert failure_of("http://no-such-host.invalid:9200").kind == "unresolved"


def test_an_envelope_becomes_the_exception_of_its_code(serve: Serve) -> None:
    body = b'{"error":{"code":"ALL_SLOTS_BUSY","message":"busy","details":{"slots_total":1,"slots_busy":1}}}'
    client = ServiceClient(serve(reply("503 Service Unavailable", body)))
    with pytest.raises(AllSlotsBusy) as caught:
        client.post("/v1/inference", {"prompt": "x"})
    assert caught.value.details == {"slots_total": 1, "slots_busy": 1}
    client.close()


def test_an_error_page_of_somebody_else_is_told_by_its_status(serve: Serve) -> None:
    client = ServiceClient(serve(reply("502 Bad Gateway", b"<html>", "text/html")))
    with pytest.raises(RelayedError, match="status 502"):
        client.stream("GET", "/v2/logs")
    client.close()


def test_a_stream_gives_events_as_they_come_and_tells_a_break(serve: Serve) -> None:
    def cut(connection: socket.socket) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b'10\r\ndata: {"token":1}')

    client = ServiceClient(serve(cut))
    with client.stream("GET", "/x") as events, pytest.raises(TransportFailure):
        list(events)
    client.close()


def test_query_prefix_key_and_headers_reach_the_service(serve: Serve, heads: list[bytes]) -> None:
    url = serve(reply("200 OK", b'{"ok":true}'))
    client = ServiceClient(f"{url}/fleet/", api_key="k" * 16, correlation_id=lambda: "c-1")
    assert client.get("/v2/logs", params={"node": "a b", "lines": 3}) == {"ok": True}
    client.close()
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /fleet/v2/logs?node=a+b&lines=3 HTTP/1.1"
    assert {f"Authorization: Bearer {'k' * 16}", "X-Correlation-ID: c-1", "X-Rbee-Version: 0.1.0"} <= set(
        lines
    )


def raw(data: bytes) -> Answer:
    return lambda connection: connection.sendall(data)


def closing(answer: Answer) -> Answer:
    """The answer, after which the connection is closed."""

    def act(connection: socket.socket) -> bool:
        answer(connection)
        return True

    return act


OK = reply("200 OK", b'{"ok":true}')


def test_a_connection_is_used_again(serve: Serve) -> None:
    opened: set[object] = set()

    def note(connection: socket.socket) -> None:
        opened.add(connection.getpeername())
        OK(connection)

    client = ServiceClient(serve(note, note, note))
    for _ in range(3):
        assert client.get("/x") == {"ok": True}
    client.close()
    assert len(opened) == 1


def test_a_kept_connection_that_the_service_closed_is_replaced(
    serve: Serve, closed: threading.Semaphore
) -> None:
    client = ServiceClient(serve(closing(OK), OK))
    assert client.post("/x") == {"ok": True}
    assert closed.acquire(timeout=5)
    assert client.post("/x") == {"ok": True}
    client.close()


def test_what_the_service_has_closed_is_not_kept_open_here(serve: Serve, closed: threading.Semaphore) -> None:
    client = ServiceClient(serve(OK, closing(OK)))
    client.get("/x")
    assert client.has_open_connection()
    client.get("/x")
    assert closed.acquire(timeout=5)
    assert not client.has_open_connection()
    client.close()


def test_a_read_is_sent_again_when_a_kept_connection_dies_under_it(serve: Serve, heads: list[bytes]) -> None:
    client = ServiceClient(serve(OK, closing(lambda _c: None), OK))
    client.get("/first")
    assert client.get("/second") == {"ok": True}
    client.close()
    assert [head.split()[1] for head in heads] == [b"/first", b"/second", b"/second"]


def test_a_write_is_never_sent_twice(serve: Serve, heads: list[bytes]) -> None:
    client = ServiceClient(serve(OK, closing(lambda _c: None), OK))
    client.get("/first")
    with pytest.raises(TransportFailure) as caught:
        client.post("/second")
    client.close()
    assert caught.value.kind == "reset"
    assert [head.split()[1] for head in heads] == [b"/first", b"/second"]


@pytest.mark.parametrize(
    "body",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'4;x=1\r\n{"ok\r\n7\r\n":true}\r\n0\r\nA: b\r\n\r\n',
        b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"ok":true}',
        b'HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"ok":true}',
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_every_framing_is_read_however_it_is_cut(serve: Serve, body: bytes, step: int) -> None:
    def trickle(connection: socket.socket) -> None:
        for start in range(0, len(body), step):
            connection.sendall(body[start : start + step])

    client = ServiceClient(serve(trickle, OK))
    assert client.get("/x") == {"ok": True}
    # What was read to its end leaves nothing behind for the next answer.
    assert client.get("/x") == {"ok": True}
    client.close()


def test_a_body_without_length_ends_with_the_connection(serve: Serve) -> None:
    client = ServiceClient(serve(closing(raw(b'HTTP/1.1 200 OK\r\n\r\n{"ok":true}'))))
    assert client.get("/x") == {"ok": True}
    client.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 100_000,
    ],
)
def test_what_is_no_http_is_unreadable(serve: Serve, garbage: bytes) -> None:
    assert failure_of(serve(closing(raw(garbage)))).kind == "unreadable"


def test_a_line_break_cannot_be_smuggled_into_a_request(serve: Serve, heads: list[bytes]) -> None:
    client = ServiceClient(serve(OK))
    with pytest.raises(TransportFailure):
        client.get("/v1/workers/x HTTP/1.1\r\nA: b\r\n\r\nGET /v1/admin")
    client.close()
    assert heads == []


def test_a_stream_is_closed_by_another_thread_while_it_is_read(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    released = threading.Event()

    def hold(connection: socket.socket) -> bool:
        connection.sendall(head)
        return released.wait(10)

    client = ServiceClient(serve(hold))
    stream = client.stream("GET", "/x")
    events = iter(stream)
    assert next(events).data == "1"
    closer = threading.Timer(0.1, stream.close)
    closer.start()
    with pytest.raises(TransportFailure):
        next(events)
    closer.join()
    released.set()
    client.close()
