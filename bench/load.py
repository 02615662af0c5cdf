"""Many token streams at once from one process, and how late each token came; the client side of a relay test.

Run as ``python -m bench.load URL PATH STREAMS TOKENS [KEY [rbee|openai]]``; prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from bench.measuring import median, percentile

_TOKENS = {"rbee": b'"token":"', "openai": b'"content":"'}
"""What comes before the text of a token, by the form of the stream."""


class Load:
    """Opens the streams evenly over a second and reads them to their end."""

    def __init__(self, url: str, path: str, streams: int, tokens: int, key: str | None, form: str) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        self.path, self.streams, self.tokens, self.key = path, streams, tokens, key
        self.mark, self.form = _TOKENS[form], form
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
        asked: dict[str, Any] = {"prompt": "Hi", "max_tokens": self.tokens, "temperature": 0.0}
        if self.form == "openai":
            del asked["prompt"]
            asked |= {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        body = json.dumps(asked).encode()
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
                if (at := line.find(self.mark)) >= 0 and (text := _text(line, at + len(self.mark))):
                    now = time.monotonic_ns()
                    sent = int(text)
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


def _text(line: bytes, start: int) -> bytes:
    return line[start : line.index(b'"', start)]


def main() -> None:
    url, path, streams, tokens, *rest = sys.argv[1:]
    key, form = [*rest, None, None][0], [*rest, None, None][1]
    load = Load(url, path, int(streams), int(tokens), key, form or "rbee")
    print(json.dumps(asyncio.run(load.run())))


if __name__ == "__main__":
    main()
