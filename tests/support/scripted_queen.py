"""A queen that behaves as a script says: real HTTP on a real socket, for the keeper's tests."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rbee.core.events import DONE, KEEP_ALIVE, encode_event

REQUEST_ID = "0c0e4d1e-1111-4222-8333-123456789abc"
Json = dict[str, Any]


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Stream:
    """What a script of ``POST /v2/tasks`` writes to."""

    def __init__(self, handler: _Handler, queen: ScriptedQueen) -> None:
        self._handler = handler
        self._queen = queen
        self._tokens = 0

    def event(self, data: Json, name: str | None = None) -> None:
        self.raw(encode_event(data, name))

    def narrate(self, human: str, actor: str = "queen-rbee", action: str = "startup") -> None:
        self.event({"actor": actor, "action": action, "human": human}, "narration")

    def progress(self, **data: Any) -> None:
        self.event(data, "progress")

    def started(self, node: str = "localhost") -> None:
        data = {"request_id": REQUEST_ID, "node": node, "worker_id": "worker-1"}
        self.event({**data, "worker_url": "http://127.0.0.1:8001", "model": "file:/m.gguf"}, "started")

    def tokens(self, *texts: str) -> None:
        for text in texts:
            self.event({"token": text, "index": self._tokens})
            self._tokens += 1

    def done(self, total: int, stop_reason: str = "MAX_TOKENS") -> None:
        data = {"done": True, "total_tokens": total, "duration_ms": 118, "stop_reason": stop_reason}
        self.raw(encode_event(data) + DONE)

    def error(
        self, code: str, message: str, details: Json | None = None, suggestion: str | None = None
    ) -> None:
        fields = {"code": code, "message": message, "details": details or {}}
        self.raw(
            encode_event({"error": {**fields, **({"suggestion": suggestion} if suggestion else {})}}) + DONE
        )

    def raw(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def wait_for_cancel(self, timeout_s: float = 10.0) -> None:
        """Keep the stream open until a DELETE has come."""
        assert self._queen.canceled.wait(timeout_s), "no DELETE came"

    def wait_for_client_gone(self, timeout_s: float = 10.0) -> None:
        """Keep the stream alive until the client closes it."""
        connection = self._handler.connection
        connection.settimeout(0.05)
        for _ in range(int(timeout_s / 0.05)):
            try:
                self.raw(KEEP_ALIVE)
                if connection.recv(1, socket.MSG_PEEK) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self._queen.client_gone.set()

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._handler.is_cut = True
        self._handler.connection.close()

    def cut(self) -> None:
        """End the connection in order, in the middle of the answer."""
        self._handler.is_cut = True


Script = Callable[[Stream], None]


@dataclass
class ScriptedQueen:
    """A context manager; ``url`` is where it listens.

    Attributes:
        answers: status and body by ``METHOD path`` (without the query).
        task: plays the stream of ``POST /v2/tasks``; ``streams`` those of other paths.
        health: status and body of ``GET /health``.
        cancel_is_deaf: DELETE is not answered while the queen lives.
    """

    task: Script | None = None
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    streams: dict[str, Script] = field(default_factory=dict)
    health: tuple[int, Any] = (200, {"status": "ok", "version": "0.1.0", "service": "queen-rbee"})
    cancel_is_deaf: bool = False
    received: list[Received] = field(default_factory=list)
    canceled: threading.Event = field(default_factory=threading.Event)
    client_gone: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ScriptedQueen:
        queen = self

        class Handler(_Handler):
            script = queen

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, method: str, path: str) -> list[Received]:
        """What came in of that kind, in order."""
        return [r for r in self.received if r.method == method and r.path.split("?")[0] == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: ScriptedQueen
    is_cut = False

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path = self.path.split("?")[0]
        queen = self.script
        queen.received.append(Received(self.command, self.path, dict(self.headers), body))
        key = f"{self.command} {path}"
        if key == "GET /health":
            self._answer(*queen.health)
        elif key in queen.answers:
            self._answer(*queen.answers[key])
        elif key == "POST /v2/tasks" and queen.task is not None:
            self._play(queen.task)
        elif key in queen.streams:
            self._play(queen.streams[key])
        elif self.command == "DELETE":
            if queen.cancel_is_deaf:
                queen.stopping.wait(30)
                self.close_connection = True
                return
            self._answer(204, None)
            queen.canceled.set()
        else:
            self._answer(404, {"error": {"code": "NOT_FOUND", "message": "no such path", "details": {}}})

    do_GET = do_POST = do_DELETE = _serve

    def _answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _play(self, script: Script) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Request-Id", REQUEST_ID)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        stream = Stream(self, self.script)
        try:
            script(stream)
            if not self.is_cut:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.script.client_gone.set()
            self.is_cut = True
        # A connection that was not announced as closing may carry the client's next request already.
        self.close_connection = self.is_cut

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            return

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test reads ``received``."""
