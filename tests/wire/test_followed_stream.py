"""A stream that the event loop follows: the same bytes in whole events, however they were framed and cut."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rbee.core.client import ServiceClient, TransportFailure
from rbee.core.events import EventReader
from rbee.queen.adapters.followed_stream import FollowedStream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENTS = [b'data: {"token":"%d","index":%d}\n\n' % (n, n) for n in range(40)]
EVENTS.insert(7, b"event: narration\ndata: {}\n\n")
EVENTS.append(b"data: [DONE]\n\n")
BODY = b"".join(EVENTS)
Connect = Callable[[bytes, int], FollowedStream]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens a stream on a server that sends some bytes, so many at a time, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients: list[ServiceClient] = []
    threads: list[threading.Thread] = []

    def start(raw: bytes, step: int) -> FollowedStream:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.recv(65536)
                for at in range(0, len(raw), step):
                    connection.sendall(raw[at : at + step])
                    # Lets the reader in between two pieces; whether it comes in decides nothing.
                    time.sleep(0.0002)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        clients.append(ServiceClient(url, stream_type=FollowedStream))
        stream = clients[-1].stream("GET", "/stream")
        assert isinstance(stream, FollowedStream)
        return stream

    yield start
    for thread in threads:
        thread.join(10)
    for client in clients:
        client.close()
    listener.close()


def chunked(pieces: list[bytes]) -> bytes:
    frames = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + frames + b"0\r\n\r\n"


def cut(body: bytes, step: int) -> list[bytes]:
    return [body[at : at + step] for at in range(0, len(body), step)]


FRAMED = {
    "an event a chunk": chunked(EVENTS),
    "two events a chunk": chunked([b"".join(EVENTS[at : at + 2]) for at in range(0, len(EVENTS), 2)]),
    "chunks of 7 bytes": chunked(cut(BODY, 7)),
    "one chunk": chunked([BODY]),
    "no chunks": HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "sizes with an extension": chunked(EVENTS).replace(b"\r\ndata", b";a=b\r\ndata"),
}


@pytest.mark.parametrize("step", [5, 34, 100, 100_000])
@pytest.mark.parametrize("framing", FRAMED)
def test_all_events_come_once_in_order_and_whole(connect: Connect, framing: str, step: int) -> None:
    stream, taken = connect(FRAMED[framing], step), list[bytes]()

    def accept(block: bytes) -> bool:
        taken.append(block)
        return True

    assert stream.follow(accept) == b""
    assert b"".join(taken) == BODY
    assert all(block.endswith(b"\n\n") for block in taken)


@pytest.mark.parametrize("step", [34, 100_000])
@pytest.mark.parametrize("framing", FRAMED)
def test_a_block_that_is_not_accepted_is_returned_and_the_next_call_goes_on(
    connect: Connect, framing: str, step: int
) -> None:
    stream, taken = connect(FRAMED[framing], step), list[bytes]()
    while block := stream.follow(lambda _block: False):
        taken.append(block)
    assert b"".join(taken) == BODY
    assert len(list(EventReader().feed(b"".join(taken)))) == len(EVENTS)


@pytest.mark.parametrize("step", [34, 100_000])
@pytest.mark.parametrize("framing", ["an event a chunk", "one chunk", "chunks of 7 bytes"])
def test_a_stream_that_breaks_off_says_so(connect: Connect, framing: str, step: int) -> None:
    stream, taken = connect(FRAMED[framing][:-9], step), list[bytes]()

    def accept(block: bytes) -> bool:
        taken.append(block)
        return True

    with pytest.raises(TransportFailure) as caught:
        stream.follow(accept)
    assert caught.value.kind == "reset"
    assert BODY.startswith(b"".join(taken))


def test_what_is_no_chunk_is_unreadable(connect: Connect) -> None:
    whole = chunked(EVENTS[:1])[:-5]
    stream, taken = connect(whole + b"xyz\r\nbad\r\n", len(whole)), list[bytes]()

    def accept(block: bytes) -> bool:
        taken.append(block)
        return True

    with pytest.raises(TransportFailure) as caught:
        stream.follow(accept)
    assert caught.value.kind == "unreadable"
    assert taken == EVENTS[:1]
