"""Times of the pieces of one token stream, taken where the bytes arrive."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit


@dataclass
class StreamTimes:
    """Seconds from sending the request to each token's arrival."""

    tokens: list[float] = field(default_factory=list)
    stop_reason: str = ""

    @property
    def first(self) -> float:
        return self.tokens[0]

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.tokens)]


class StreamClient:
    """Posts requests over one kept connection and notes when each token event arrives."""

    def __init__(self, url: str, path: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)
        self._path = path
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def run(self, body: dict[str, Any]) -> StreamTimes:
        """One request to its end.

        Raises:
            RuntimeError: it ended by an error.
        """
        payload = json.dumps(body).encode()
        times = StreamTimes()
        started = time.perf_counter()
        self._connection.request("POST", self._path, payload, self._headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        while line := answer.readline():
            if line.startswith(b'data: {"token"'):
                times.tokens.append(time.perf_counter() - started)
            elif line.startswith(b'data: {"done"'):
                times.stop_reason = json.loads(line[6:])["stop_reason"]
            elif line.startswith(b'data: {"error"'):
                raise RuntimeError(line.decode())
        return times

    def close(self) -> None:
        self._connection.close()
