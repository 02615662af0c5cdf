"""A client that holds a worker's slot with requests of its own."""

from __future__ import annotations

import http.client
import json
import threading
import uuid
from typing import Any

from features.support.commands import wait_until
from features.support.observing import call, stream_events
from features.support.workers import START_S, Worker

PROMPT = "Count on for ever: 1, 2, 3, 4, 5, 6, 7, 8, 9,"


class Holder:
    """One request after the other, without a pause, until ``finish``; or one long one until ``cancel``."""

    def __init__(self, worker: Worker, max_tokens: int) -> None:
        self.worker = worker
        self.streams: list[list[tuple[str, Any]]] = []
        """The events of the requests that are over."""
        self.correlation_id = str(uuid.uuid4())
        self._max_tokens = max_tokens
        self._is_wanted = True
        self._request_id = ""
        self._got_token = threading.Event()
        self._received = b""
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()
        wait_until(self._got_token.is_set, START_S, "the first token of the request that holds the slot")

    @property
    def tokens(self) -> list[Any]:
        """The token events that the request under way has received so far."""
        return [data for _, data in stream_events(self._received) if "token" in data]

    def finish(self) -> None:
        """Let the request under way come to its end, and start no other."""
        self._is_wanted = False
        self._thread.join(START_S)
        assert not self._thread.is_alive(), "the request that holds the slot does not end"

    def cancel(self) -> None:
        """Have the worker end the request under way."""
        self._is_wanted = False
        url = f"{self.worker.url}/v1/inference/{self._request_id}"
        answer = call("DELETE", url, key=self.worker.key)
        assert answer.status == 204, answer.body
        self._thread.join(START_S)

    def _hold(self) -> None:
        while self._is_wanted:
            self._request_id = str(uuid.uuid4())
            self.streams.append(stream_events(self._request()))
            if not self.streams[-1]:
                # Nothing answers there any more.
                return

    def _request(self) -> bytes:
        host, port = self.worker.machine.host, self.worker.port
        body = {
            "request_id": self._request_id,
            "prompt": PROMPT,
            "raw": True,
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
            "timeout_seconds": 3600,
        }
        headers = {
            "Authorization": f"Bearer {self.worker.key}",
            "Content-Type": "application/json",
            "X-Correlation-ID": self.correlation_id,
        }
        connection = http.client.HTTPConnection(host, port, timeout=START_S)
        self._received = b""
        try:
            connection.request("POST", "/v1/inference", json.dumps(body), headers)
            answer = connection.getresponse()
            while piece := answer.read1(65536):
                self._received += piece
                if b'"token"' in self._received:
                    self._got_token.set()
        except OSError:
            # The worker ended, or the scenario is over; what was received tells.
            pass
        finally:
            connection.close()
        return self._received
