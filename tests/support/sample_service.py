"""A small service on the shared web half, run as a program by the wire tests of that half."""

from __future__ import annotations

import sys
from typing import Any

from rbee.core.logs import configure_logging
from rbee.web.server import Serving, bind, run_daemon


class SampleService:
    """Streams: endless, a burst, silent, failing; and a shutdown that takes a moment."""

    def __init__(self, serving: Serving) -> None:
        import gevent

        from rbee.core.errors import DiskFull
        from rbee.core.schemas import ModelBody
        from rbee.web.app import create_service_app, read_body
        from rbee.web.auth import KeyRing
        from rbee.web.sse import Emitter, OpenStreams

        self.app = create_service_app("sample", KeyRing(None), body_bytes=1 << 20, invalid_per_second=50)
        self.streams = OpenStreams("sample", keepalive_s=0.2)
        self.ended: list[str] = []
        streams, ended = self.streams, self.ended

        @self.app.get("/v1/health")
        def health() -> dict[str, Any]:
            return {"open": len(streams), "ended": ended, "daemon_pid": serving.daemon_pid}

        @self.app.post("/v1/stop")
        def stop() -> tuple[dict[str, str], int]:
            serving.request_shutdown()
            return {"status": "shutting_down"}, 202

        @self.app.post("/v1/body")
        def body() -> dict[str, Any]:
            return read_body(ModelBody).model_dump()

        @self.app.get("/v1/stream/<kind>")
        def stream(kind: str) -> Any:
            def produce(emit: Emitter) -> None:
                try:
                    index = 0
                    while True:
                        if kind == "failing" and index == 3:
                            raise DiskFull(2, 1)
                        if kind == "crashing" and index == 3:
                            raise ZeroDivisionError("words that must not leak")
                        if kind == "forgetful" and index == 3:
                            return
                        if kind == "burst":
                            for number in range(3000):
                                emit.event({"index": number, "padding": "x" * (number % 2000)})
                            emit.conclude(b'data: {"done":true}\n\n')
                            return
                        if kind != "silent":
                            emit.event({"index": index, "padding": "x" * (60_000 if kind == "flood" else 0)})
                        index += 1
                        gevent.sleep(0.0 if kind == "flood" else 0.01)
                finally:
                    ended.append(kind)

            return streams.respond(produce, must_conclude=True)

    def listening(self) -> None:
        """Nothing to start."""

    def shut_down(self) -> None:
        """End what is open."""
        self.streams.end_all("shutting down")

    def reload(self) -> None:
        """Tell the log."""
        self.ended.append("reloaded")


if __name__ == "__main__":
    configure_logging("info")
    sys.exit(run_daemon("sample", bind("127.0.0.1", 0), SampleService))
