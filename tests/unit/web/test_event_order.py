"""Events reach a client in the order in which they were sent, however far it fell behind and caught up."""

from __future__ import annotations

import contextlib

import gevent
import gevent.socket
from flask import Flask

from rbee.core.events import EventReader
from rbee.web.sse import BUFFERED_EVENTS, Emitter, OpenStreams

EVENTS = 20 * BUFFERED_EVENTS


def test_a_producer_that_waited_for_room_does_not_overtake_its_own_event() -> None:
    """The reader stops until socket and queue are full and an event waits outside the queue, then takes all.

    The queue is then emptied in one go, and the producer goes on before its waiting event has been written.
    """
    server, client = gevent.socket.socketpair()
    produced = 0

    def produce(emit: Emitter) -> None:
        nonlocal produced
        for index in range(EVENTS):
            emit.event({"index": index})
            produced += 1
        emit.conclude(b'data: {"done":true}\n\n')

    def serve() -> None:
        """What the WSGI server does with the answer of one request."""
        app = Flask("test")
        environ = {"gunicorn.socket": server, "SERVER_PROTOCOL": "HTTP/1.0"}
        with app.test_request_context(environ_overrides=environ):
            answer = OpenStreams("test", keepalive_s=60).respond(produce)
        for piece in answer.iter_encoded():
            server.sendall(piece)
        answer.close()
        server.close()

    client.setblocking(False)
    serving = gevent.spawn(serve)
    received, stops, before = b"", 0, -1
    while not serving.ready():
        gevent.sleep(0.005)
        if before == produced:
            # Nothing moves by itself any more: everything is full.
            stops += produced < EVENTS
            received += _all_of(client)
        before = produced
    received += _all_of(client)
    client.close()
    serving.get()
    assert stops > 1
    events = [event.json() for event in EventReader().feed(received) if not event.is_done_marker]
    assert events == [*({"index": index} for index in range(EVENTS)), {"done": True}]


def _all_of(client: gevent.socket.socket) -> bytes:
    """What has come; no other greenlet runs meanwhile."""
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while piece := client.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)
