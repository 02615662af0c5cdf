"""Stand-ins for peers whose misbehaviour is a scenario's subject, as real listeners and processes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Visit:
    """One connection to a silent port. Times are monotonic seconds."""

    came: float
    left: float | None = None


class SilentPort:
    """Accepts connections, says nothing, and notes when each came and left."""

    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0))
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self.visits: list[Visit] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between the end of each visit and the next."""
        pairs = zip(self.visits, self.visits[1:], strict=False)
        return [later.came - (earlier.left or later.came) for earlier, later in pairs]

    @property
    def durations_s(self) -> list[float]:
        return [(visit.left or time.monotonic()) - visit.came for visit in self.visits]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            visit = Visit(time.monotonic())
            self.visits.append(visit)
            threading.Thread(target=self._hold, args=(connection, visit), daemon=True).start()

    @staticmethod
    def _hold(connection: socket.socket, visit: Visit) -> None:
        with connection:
            try:
                while connection.recv(4096):
                    continue
            except OSError:
                pass
            visit.left = time.monotonic()


class OtherServer:
    """A web server that is none of ours: every path is unknown to it."""

    def __init__(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _NotFound)
        self.port = port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _NotFound(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""
