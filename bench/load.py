"""Many token streams at once from one process, and how late each token came; the client side of a relay test.

Run as ``python -m bench.load URL PATH STREAMS TOKENS [KEY]``; prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from bench.measuring import median, percentile

_TOKEN = b'data: {"token":"'


class Load:
    """Opens the streams evenly over a second and reads them to their end."""

    def __init__(self, url: str, path: str, streams: int, tokens: int, key: str | None) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        self.path, self.streams, self.tokens, self.key = path, streams, tokens, key
        self.firsts: list[float] = []
        self.lateness: list[float] = []
        self.failed: list[str] = []

    async def run(self) -> dict[str, Any]:
        await asyncio.gather(*(self._one(i / self.streams) for i in range(self.streams)))
        return {
            "streams": self.streams,
            "failed": len(self.failed),
            "failure": self.failed[0] if self.failed else None,
            "tokens": len(self.lateness),
            "first_p50": median(self.firsts or [0.0]),
            "first_p99": percentile(self.firsts or [0.0], 0.99),
            "late_p50": median(self.lateness or [0.0]),
            "late_p99": percentile(self.lateness or [0.0], 0.99),
        }

    async def _one(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await self._stream()
        except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
            self.failed.append(repr(error)[:300])

    async def _stream(self) -> None:
        body = json.dumps({"prompt": "Hi", "max_tokens": self.tokens, "temperature": 0.0}).encode()
        reader, writer = await asyncio.open_connection(*self.address)
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{key}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        started = time.monotonic_ns()
        writer.write(head.encode() + body)
        seen, ended = 0, False
        try:
            while line := await reader.readline():
                if line.startswith(_TOKEN):
                    now = time.monotonic_ns()
                    sent = int(line[len(_TOKEN) : line.index(b'"', len(_TOKEN))])
                    if seen == 0:
                        self.firsts.append((now - started) / 1e9)
                    self.lateness.append((now - sent) / 1e9)
                    seen += 1
                elif line.startswith(b'data: {"error"'):
                    raise RuntimeError(line.decode())
                elif line == b"data: [DONE]\n":
                    ended = True
                    break
        finally:
            writer.close()
        if seen != self.tokens or not ended:
            raise RuntimeError(f"{seen} of {self.tokens} tokens, end seen: {ended}")


def main() -> None:
    url, path, streams, tokens, *key = sys.argv[1:]
    load = Load(url, path, int(streams), int(tokens), key[0] if key else None)
    print(json.dumps(asyncio.run(load.run())))


if __name__ == "__main__":
    main()
