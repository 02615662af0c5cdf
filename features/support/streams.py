"""Readers of event streams and of a loading worker, each with the time at which something was seen."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from features.support.observing import Answer, call, stream_events
from features.support.ports import await_port
from features.support.sandbox import API_KEY
from features.support.workers import START_S, Worker

POLL_S = 0.01


@dataclass(frozen=True)
class TimedEvent:
    """One event of a stream; ``unix`` is when its last byte was read."""

    unix: float
    name: str
    data: Any


@dataclass(frozen=True)
class StreamHead:
    """What came before the events; header names are lower-case."""

    status: int
    headers: dict[str, str]


class StreamReader:
    """Asks for a stream and reads it in a thread of its own, to its end.

    A server that is not there yet is waited for.
    """

    def __init__(self, method: str, url: str, body: Any = None, key: str = API_KEY) -> None:
        self.head: StreamHead | None = None
        self.events: list[TimedEvent] = []
        self._method, self._parts, self._body, self._key = method, urlsplit(url), body, key
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def data(self, field: str) -> list[Any]:
        """The data of the events that have a field."""
        return [
            event.data for event in list(self.events) if isinstance(event.data, dict) and field in event.data
        ]

    def await_event(self, field: str) -> None:
        """Return at once when the first event with a field has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.data(field), START_S), f"no {field} came"

    def finish(self) -> None:
        """Wait for the end of the stream."""
        self._thread.join(2 * START_S)
        assert not self._thread.is_alive(), "the stream does not end"

    def _read(self) -> None:
        connection = http.client.HTTPConnection(self._parts.netloc, timeout=START_S)
        try:
            await_port(self._parts.hostname or "", self._parts.port or 0)
            path = f"{self._parts.path}?{self._parts.query}".rstrip("?")
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            content = None if self._body is None else json.dumps(self._body)
            connection.request(self._method, path, content, headers)
            answer = connection.getresponse()
            self.head = StreamHead(answer.status, {n.lower(): v for n, v in answer.getheaders()})
            rest = b""
            while piece := answer.read1(65536):
                *blocks, rest = (rest + piece).split(b"\n\n")
                self._note(b"".join(block + b"\n\n" for block in blocks))
        except OSError:
            # The server ended; what was received tells.
            pass
        finally:
            connection.close()

    def _note(self, blocks: bytes) -> None:
        with self._changed:
            now = time.time()
            self.events += [TimedEvent(now, name, data) for name, data in stream_events(blocks)]
            self._changed.notify_all()


@dataclass(frozen=True)
class Look:
    """What a worker answered at about the same moment; ``health_s`` is how long its health took."""

    ready: dict[str, Any]
    ready_status: int
    inference: Answer
    health: Answer
    health_s: float


class LoadingPoll:
    """Asks a worker every 10 ms from the moment its port is bound until it is ready."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.looks: list[Look] = []
        """Those after which the worker was found loading once more: all was asked while it loaded."""
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._thread.join(START_S)
        assert not self._thread.is_alive(), "the worker does not become ready"

    def _poll(self) -> None:
        url, key = self._worker.url, self._worker.key
        self._await_port()
        last: list[Look] = []
        while not (ready := call("GET", f"{url}/v1/ready", key=key)).json()["ready"]:
            self.looks += last
            inference = call("POST", f"{url}/v1/inference", {"prompt": "hello", "max_tokens": 1}, key=key)
            began = time.monotonic()
            health = call("GET", f"{url}/v1/health", key=key)
            last = [Look(ready.json(), ready.status, inference, health, time.monotonic() - began)]
            time.sleep(POLL_S)

    def _await_port(self) -> None:
        await_port(self._worker.machine.host, self._worker.port)
