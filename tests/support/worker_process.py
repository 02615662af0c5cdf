"""A real worker process, and a stand-in for the one request it sends to its hive."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rbee.core.client import ServiceClient
from support.daemons import Daemon, environment, wait_until

KEY = "key-11111111-2222-4333-8444-555555555555"
MODEL_REF = "hf:org/repo"
CALLBACK_PATH = "/v1/workers/ready"


class CallbackPoint:
    """Answers ``POST /v1/workers/ready`` as a hive does; every call is kept with its time."""

    def __init__(self, status: int = 200) -> None:
        self.calls: list[tuple[float, str | None, dict[str, Any]]] = []
        point = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                point.calls.append((time.monotonic(), self.headers["Authorization"], body))
                answer = b'{"message":"Worker registered as ready"}' if status == 200 else b"{}"
                self.send_response(status if self.path == CALLBACK_PATH else 404)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Nothing on the test's output."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{CALLBACK_PATH}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def worker_arguments(model: Path, callback_url: str, key: str = KEY, port: int = 0) -> list[str]:
    """All flags of a worker."""
    values = {
        "--worker-id": "worker-1",
        "--model": str(model),
        "--model-ref": MODEL_REF,
        "--backend": "cpu",
        "--device": "0",
        "--port": str(port),
        "--host": "127.0.0.1",
        "--callback-url": callback_url,
        "--api-key": key,
    }
    return [text for pair in values.items() for text in pair]


class WorkerProcess:
    """A running worker; ``call`` and ``stream`` use its key."""

    def __init__(self, daemon: Daemon, point: CallbackPoint) -> None:
        self.daemon, self.point = daemon, point
        self.client = ServiceClient(daemon.url, api_key=KEY)

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/v1/ready")
        return answer

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/v1/health")
        return answer

    def wait_state(self, state: str, timeout_s: float = 60.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            answer = self.ready()
            return answer if answer["state"] == state else None

        return wait_until(reached, timeout_s, f"state {state}")

    def infer(self, **body: Any) -> list[Any]:
        """The data of the unnamed events of one whole answer."""
        with self.client.stream("POST", "/v1/inference", body=body, read_timeout_s=120) as stream:
            events = list(stream)
        assert events[-1].is_done_marker
        return [event.json() for event in events[:-1] if not event.name]

    def text(self, **body: Any) -> str:
        """The text of one whole answer."""
        data = self.infer(**body)
        assert data[-1].get("done"), data[-1]
        return "".join(each["token"] for each in data[:-1])

    def tokens_generated(self) -> float:
        return self.metric("rbee_worker_tokens_generated_total")

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=10)
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
        text = connection.getresponse().read().decode()
        connection.close()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def narration(self) -> list[dict[str, Any]]:
        """The start-up lines on standard output."""
        lines = (line for line in self.daemon.output.splitlines() if line.startswith('{"type"'))
        return [json.loads(line) for line in lines]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = (line for line in self.daemon.output.splitlines() if line.startswith('{"timestamp"'))
        return [found for line in lines if (found := json.loads(line))["event"] == event]


@contextmanager
def running_worker(
    home: Path,
    model: Path,
    *,
    settings: dict[str, Any] | None = None,
    key: str = KEY,
    env: dict[str, str] | None = None,
) -> Iterator[WorkerProcess]:
    """A worker of ``model``; it may still be loading. Ended at the end."""
    point = CallbackPoint()
    extra = {**(env or {})}
    if settings:
        extra["RBEE_WORKER_SETTINGS"] = json.dumps(settings)
    try:
        arguments = worker_arguments(model, point.url, key)
        with Daemon("llm-worker-rbee", arguments, environment(home, extra)) as daemon:
            worker = WorkerProcess(daemon, point)
            try:
                yield worker
            finally:
                worker.client.close()
    finally:
        point.close()
