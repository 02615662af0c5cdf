"""Calls to a worker: kept connections, one time limit for all of a call, and no foreign exception."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rbee.core.lifecycle import WorkerState
from rbee.hive.adapters.worker_http import HttpWorkerConnection
from rbee.hive.ports import NoAnswer

FACTS: dict[str, Any] = {
    "state": "idle",
    "slots_total": 2,
    "slots_available": 1,
    "idle_since": "2026-01-31T08:00:00.000Z",
    "vram_bytes": 1024,
}


def answer(body: object, status: int = 200, extra: str = "") -> bytes:
    raw = json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\n{extra}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Worker:
    """A server on a socket: one request per block of bytes, answered by ``reply``."""

    def __init__(self, reply: Callable[[socket.socket, bytes], bool]) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        self.connection = HttpWorkerConnection(self.url, "key-1")

    def close(self) -> None:
        self.connection.close()
        # A listener that is only closed would leave the accepting thread waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()

    def _accept(self) -> None:
        serving = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            self.connections += 1
            serving.append(threading.Thread(target=self._serve, args=(client,)))
            serving[-1].start()
        for thread in serving:
            thread.join()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while request := client.recv(65536):
                self.requests.append(request)
                if not self._reply(client, request):
                    return


@contextmanager
def worker(reply: Callable[[socket.socket, bytes], bool]) -> Iterator[Worker]:
    made = Worker(reply)
    try:
        yield made
    finally:
        made.close()


def send(raw: bytes, keep: bool = True) -> Callable[[socket.socket, bytes], bool]:
    def reply(client: socket.socket, _request: bytes) -> bool:
        client.sendall(raw)
        return keep

    return reply


def test_a_report_has_the_state_and_the_slots() -> None:
    with worker(send(answer(FACTS))) as peer:
        report = peer.connection.ready(1)
    assert (report.state, report.slots_total, report.slots_available) == (WorkerState.IDLE, 2, 1)
    assert report.idle_since == "2026-01-31T08:00:00.000Z"
    assert report.vram_bytes == 1024
    assert peer.requests[0].startswith(b"GET /v1/ready HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer key-1\r\n" in peer.requests[0]


def test_a_call_carries_the_correlation_id_of_the_request_behind_it() -> None:
    with worker(send(answer(FACTS))) as peer:
        for identity in ("11111111-2222-4333-8444-555555555555", None):
            connection = HttpWorkerConnection(peer.url, "key-1", lambda known=identity: known)
            connection.ready(1)
            connection.close()
    assert b"\r\nX-Correlation-ID: 11111111-2222-4333-8444-555555555555\r\n" in peer.requests[0]
    assert b"X-Correlation-ID" not in peer.requests[1]


def test_one_connection_serves_many_calls() -> None:
    with worker(send(answer(FACTS))) as peer:
        for _ in range(5):
            peer.connection.ready(1)
        peer.connection.health(1)
    assert peer.connections == 1


def test_a_connection_that_the_worker_closed_is_replaced_unnoticed() -> None:
    with worker(send(answer(FACTS), keep=False)) as peer:
        for _ in range(3):
            assert peer.connection.ready(1).state is WorkerState.IDLE
    assert peer.connections == 3


def test_a_worker_that_wants_the_connection_closed_gets_a_new_one() -> None:
    with worker(send(answer(FACTS, extra="Connection: close\r\n"))) as peer:
        peer.connection.ready(1)
        peer.connection.ready(1)
    assert peer.connections == 2


def test_an_answer_in_pieces_is_put_together() -> None:
    raw = answer({**FACTS, "padding": "x" * 1000})

    def trickle(client: socket.socket, _request: bytes) -> bool:
        for start in range(0, len(raw), 97):
            client.sendall(raw[start : start + 97])
        return True

    with worker(trickle) as peer:
        assert peer.connection.ready(2).slots_total == 2
        assert peer.connection.ready(2).slots_total == 2
    assert peer.connections == 1


def test_silence_ends_after_the_limit() -> None:
    with worker(lambda _client, _request: True) as peer:
        begun = time.monotonic()
        with pytest.raises(NoAnswer) as raised:
            peer.connection.ready(0.2)
        assert raised.value.kind == "timeout"
        assert time.monotonic() - begun < 1


def test_bytes_that_trickle_do_not_prolong_a_call() -> None:
    # In a process of its own, because the limit counts where gevent has patched the sockets, as in a hive.
    script = """
        import gevent.monkey; gevent.monkey.patch_all()
        import gevent, time
        from gevent.server import StreamServer
        from rbee.hive.adapters.worker_http import HttpWorkerConnection
        from rbee.hive.ports import NoAnswer

        def trickle(client, _address):
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\\r\\n")
            while True:
                gevent.sleep(0.05)
                client.sendall(b"X")

        server = StreamServer(("127.0.0.1", 0), trickle)
        server.start()
        begun = time.monotonic()
        try:
            HttpWorkerConnection(f"http://127.0.0.1:{server.server_port}", "key").ready(0.3)
        except NoAnswer as error:
            print(error.kind, time.monotonic() - begun < 2)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "timeout True\n"


def test_a_call_after_a_time_out_does_not_get_the_answer_to_the_one_before() -> None:
    replies = iter([None, answer({**FACTS, "state": "busy"})])

    def reply(client: socket.socket, _request: bytes) -> bool:
        raw = next(replies)
        if raw is not None:
            client.sendall(raw)
        return True

    with worker(reply) as peer:
        with pytest.raises(NoAnswer):
            peer.connection.ready(0.1)
        assert peer.connection.ready(1).state is WorkerState.BUSY
    assert peer.connections == 2


def test_nobody_listening_is_refused() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    with pytest.raises(NoAnswer) as raised:
        HttpWorkerConnection(f"http://127.0.0.1:{port}", "key").ready(1)
    assert raised.value.kind == "refused"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "reset"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "reset"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", "reset"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "unreadable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope", "unreadable"),
        (answer([]), "unreadable"),
        (answer({"state": "idle"}), "unreadable"),
        (answer({**FACTS, "state": "asleep"}), "unreadable"),
        (answer({**FACTS, "slots_total": None}), "unreadable"),
        (answer({**FACTS, "idle_since": 17}), "unreadable"),
        (answer({**FACTS, "idle_since": "yesterday"}), "unreadable"),
        (answer({}, status=401), "unreadable"),
    ],
)
def test_anything_else_is_no_answer_with_its_kind(raw: bytes, kind: str) -> None:
    with worker(send(raw, keep=False)) as peer, pytest.raises(NoAnswer) as raised:
        peer.connection.ready(2)
    assert raised.value.kind == kind


def test_a_worker_that_calls_itself_unhealthy_has_missed_its_probe() -> None:
    with worker(send(answer({**FACTS, "status": "unhealthy"}))) as peer:
        with pytest.raises(NoAnswer) as raised:
            peer.connection.health(1)
        assert raised.value.kind == "unhealthy"


def test_a_shutdown_request_carries_the_drain_time() -> None:
    with worker(send(answer({"status": "draining"}, status=202))) as peer:
        peer.connection.shut_down(25, 1)
    head, _, body = peer.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/admin/shutdown HTTP/1.1\r\n")
    assert json.loads(body) == {"graceful": True, "timeout_seconds": 25}


def test_loading_events_come_one_by_one_until_the_end() -> None:
    def stream(client: socket.socket, _request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for text in ('data: {"layers_loaded":1}\n\n: keep-alive\n\n', 'data: {"stage":"re', 'ady"}\n\n'):
            client.sendall(f"{len(text):x}\r\n{text}\r\n".encode())
        client.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        return True

    with worker(stream) as peer:
        events = list(peer.connection.loading_events(1))
    assert events == [{"layers_loaded": 1}, {"stage": "ready"}]


def test_a_loading_stream_that_breaks_is_no_answer() -> None:
    def stream(client: socket.socket, _request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata")
        return False

    with worker(stream) as peer, pytest.raises(NoAnswer):
        list(peer.connection.loading_events(1))
