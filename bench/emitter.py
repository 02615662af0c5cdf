"""A worker without a model: any number of streams, each token at its time; for measuring what lies before it.

The text of a token is the moment of its sending (``time.monotonic_ns``), so that a client on the same machine
knows how long it was on its way. Run by a hive in place of the real program (``pool.worker_command``).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Emitter:
    """Serves a worker's HTTP on one asyncio loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.key = Path(options.api_key.removeprefix("@")).read_text(encoding="ascii").strip()
        self.over = asyncio.Event()
        self.open = 0

    async def run(self) -> None:
        options = self.options
        server = await asyncio.start_server(self._serve, options.host, options.port, backlog=4096)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.over.set)
        await asyncio.to_thread(self._call_back)
        await self.over.wait()
        server.close()

    def _call_back(self) -> None:
        options, parts = self.options, urlsplit(self.options.callback_url)
        body = {
            "worker_id": options.worker_id,
            "url": f"http://{options.host}:{options.port}",
            "model_ref": options.model_ref,
            "backend": options.backend,
            "device": options.device,
        }
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        connection.request("POST", parts.path, json.dumps(body), headers)
        connection.getresponse().read()
        connection.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b" ", 2)
                _, _, length = head.lower().partition(b"content-length:")
                body = await reader.readexactly(int(length.partition(b"\r\n")[0] or 0))
                if (method, path) == (b"POST", b"/v1/inference"):
                    await self._generate(writer, json.loads(body))
                elif path == b"/v1/loading/progress":
                    await self._progress(writer)
                elif path == b"/v1/chat/completions":
                    await self._complete(writer, json.loads(body))
                else:
                    self._answer(writer, path)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, path: bytes) -> None:
        facts = {
            "status": "healthy",
            "service": "llm-worker-rbee",
            "state": "idle",
            "ready": True,
            "model_loaded": True,
            "slots_total": self.options.slots,
            "slots_available": max(0, self.options.slots - self.open),
            "active_requests": self.open,
            "idle_since": None,
            "vram_bytes": 0,
            "progress_url": "/v1/loading/progress",
        }
        if path == b"/v1/admin/shutdown":
            self.over.set()
        raw = json.dumps(facts).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(raw) + raw)

    async def _progress(self, writer: asyncio.StreamWriter) -> None:
        _begin(writer)
        _event(writer, {"stage": "ready"})
        _end(writer)

    async def _complete(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """The same in the form of OpenAI's API, for proxies that speak nothing else."""
        loop, step = asyncio.get_running_loop(), 1 / self.options.rate
        head = {"id": "bench", "object": "chat.completion.chunk", "created": 0, "model": "bench"}
        _begin(writer)
        due = loop.time()
        for _ in range(int(body["max_tokens"])):
            choice = {"index": 0, "delta": {"content": str(time.monotonic_ns())}, "finish_reason": None}
            _event(writer, {**head, "choices": [choice]})
            due += step
            await asyncio.sleep(due - loop.time())
        _event(writer, {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        _end(writer)

    async def _generate(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        self.open += 1
        loop, step = asyncio.get_running_loop(), 1 / self.options.rate
        try:
            _begin(writer)
            started = json.dumps({"request_id": body.get("request_id")}).encode()
            _chunk(writer, b"event: started\ndata: " + started + b"\n\n")
            due = loop.time()
            for index in range(int(body["max_tokens"])):
                _chunk(writer, b'data: {"token":"%d","index":%d}\n\n' % (time.monotonic_ns(), index))
                due += step
                await asyncio.sleep(due - loop.time())
            _event(writer, {"done": True, "total_tokens": body["max_tokens"], "stop_reason": "MAX_TOKENS"})
            _end(writer)
        finally:
            self.open -= 1


def _begin(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(raw), raw))


def _event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(data).encode() + b"\n\n")


def _end(writer: asyncio.StreamWriter) -> None:
    _chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("worker-id", "model", "model-ref", "backend", "host", "callback-url", "api-key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--device", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens per second and stream")
    parser.add_argument("--slots", type=int, default=4096)

    async def run() -> None:
        await Emitter(parser.parse_args()).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
