"""Many hives in one process, each on a loopback address of its own, with one worker of one slot each.

Run as ``python -m bench.crowd COUNT``; prints ``crowd listening on PORT``. Hive number N is at
``address(N)``; its worker has the model ``MODEL`` and answers with tokens until the client goes.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from typing import Any

MODEL = "file:/srv/crowd.gguf"
KEY = "key-of-a-crowd"
_TOKEN_INTERVAL_S = 1.0


def address(number: int) -> str:
    """Of hive ``number``, counted from 0."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


class Crowd:
    """Serves the routes of hives and workers that a placement needs."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.port = 0
        self.open: dict[str, int] = {}
        """Streams by address."""

    async def run(self) -> None:
        first = await asyncio.start_server(self._serve, address(0), 0, backlog=64)
        self.port = first.sockets[0].getsockname()[1]
        more = [address(number) for number in range(1, self.count)]
        if more:
            await asyncio.start_server(self._serve, more, self.port, backlog=64)
        over = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        print(f"crowd listening on {self.port}", flush=True)
        await over.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = writer.get_extra_info("sockname")[0]
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b" ", 2)
                _, _, length = head.lower().partition(b"content-length:")
                body = await reader.readexactly(int(length.partition(b"\r\n")[0] or 0))
                if (method, path) == (b"POST", b"/v1/inference"):
                    await self._generate(here, reader, writer, json.loads(body))
                else:
                    status, answer = self._answer(here, path.partition(b"?")[0])
                    raw = json.dumps(answer).encode()
                    form = "HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    writer.write((form % (status, len(raw))).encode() + raw)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, here: str, path: bytes) -> tuple[int, dict[str, Any]]:
        busy = self.open.get(here, 0)
        worker = {"id": f"worker-{here}", "url": f"http://{here}:{self.port}", "model_ref": MODEL}
        worker |= {"backend": "cpu", "device": "0", "state": "busy" if busy else "idle"}
        answers: dict[bytes, dict[str, Any]] = {
            b"/v1/health": {
                "status": "alive",
                "version": "0.1.0",
                "service": "rbee-hive",
                "state": "idle",
                "owner": "operator",
                "pid": os.getpid(),
            },
            b"/v1/ready": {"ready": True, "state": "idle"},
            b"/v1/workers/list": {"workers": [{**worker, "slots_total": 1, "slots_available": 1 - busy}]},
            b"/v1/models": {"models": [{"model_ref": MODEL, "size_bytes": 100_000_000}]},
            b"/v1/capabilities": {
                "backends": ["cpu"],
                "devices": {"cpu": 1},
                "ram_available_mb": 16_000,
                "vram": [],
                "disk_available_mb": 100_000,
            },
            b"/v1/workers/spawn": {"worker_id": worker["id"], "url": worker["url"], "api_key": KEY},
        }
        if path in answers:
            return 200, answers[path]
        return 404, {"error": {"code": "NOT_FOUND", "message": "no such path", "details": {}}}

    async def _generate(
        self, here: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]
    ) -> None:
        if self.open.get(here):
            details = {"slots_total": 1, "slots_busy": 1}
            raw = json.dumps({"error": {"code": "ALL_SLOTS_BUSY", "message": "busy", "details": details}})
            head = "HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            writer.write((head % len(raw) + raw).encode())
            return
        self.open[here] = 1
        try:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            started = json.dumps({"request_id": body.get("request_id")}).encode()
            _chunk(writer, b"event: started\ndata: " + started + b"\n\n")
            index = 0
            while not reader.at_eof():
                _chunk(writer, b'data: {"token":"x","index":%d}\n\n' % index)
                await writer.drain()
                index += 1
                await asyncio.sleep(_TOKEN_INTERVAL_S)
        finally:
            self.open[here] = 0


def _chunk(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(raw), raw))


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(Crowd(int(sys.argv[1])).run())


if __name__ == "__main__":
    main()
