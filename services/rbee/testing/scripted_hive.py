"""A hive and its worker that behave as a script says, on two loopback ports of one process.

Run ``python -m rbee.testing.scripted_hive '<script as JSON>'``; it prints
``scripted-hive listening on http://HOST:PORT worker http://HOST:PORT``. ``GET /_requests`` on either
port lists what both received; ``POST /_stop_hive`` closes the hive's port and leaves the worker. The fields
of ``Script`` are the script; the defaults make a peaceful peer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORKER_KEY = "key-scripted-worker"
DONE = "[DONE]"


@dataclass
class Script:
    """What the pair does."""

    host: str = "127.0.0.1"
    port: int = 0
    version: str = "0.1.0"
    owner: str = "operator"
    service: str = "rbee-hive"
    api_key: str | None = None
    broken_json: bool = False
    list_delay_s: float = 0.0
    ram_mb: int = 8000
    vram_mb: list[int] = field(default_factory=list)
    """Free memory of each CUDA device."""
    catalog: dict[str, int] = field(default_factory=dict)
    """Sizes in bytes of the models it has, by reference."""
    quality: list[dict[str, Any]] = field(default_factory=list)
    """Events of a comparison with float32."""
    models: list[str] = field(default_factory=list)
    """Models the worker is listed with before any spawn; at most one is used."""
    state: str = "idle"
    downloads: list[dict[str, Any]] | None = None
    """Events of a download; None: the model is there already."""
    startup: list[list[Any]] = field(default_factory=list)
    """``[event name, data]`` of the worker's start-up."""
    spawn_error: dict[str, Any] | None = None
    spawn_status: int = 507
    spawn_delay_s: float = 0.0
    layers: list[int] = field(default_factory=lambda: [0, 2, 4])
    layers_total: int = 4
    never_ready: bool = False
    slots: int | None = None
    """So many requests at once are served, more are refused as busy; None: any number."""
    accept_delay_s: float = 0.0
    """How long a request that has its slot already waits for the head of its answer."""
    refusal_delay_s: float = 0.0
    """How long the answer waits that all slots are busy."""
    busy_answers: int = 0
    """So many inference requests are refused as busy first."""
    free_answers: int = 0
    """So many are accepted before those."""
    hanging_answers: int = 0
    """So many are read and not answered for five seconds, after the free ones."""
    draining_answers: int = 0
    tokens: int = 5
    token_interval_s: float = 0.0
    crash_after: int | None = None
    """Close the connection after so many tokens."""
    stall_after: int | None = None
    error_after: int | None = None
    ignore_cancel: bool = False


class _Pair:
    """State and record of both servers."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.worker_url = ""
        self.worker_model = script.models[0] if script.models else None
        self.worker_id = "worker-scripted-1"
        self.state = script.state
        self.requests: list[dict[str, Any]] = []
        self.canceled: set[str] = set()
        self.active: set[str] = set()
        self.deciding = threading.Lock()
        self.is_hive_stopped = False
        self.stop_hive: Callable[[], None] = lambda: None
        self.loading_began: float | None = time.monotonic() if script.state == "loading" else None

    def worker_record(self) -> dict[str, Any]:
        return {
            "id": self.worker_id,
            "url": self.worker_url,
            "model_ref": self.worker_model,
            "backend": "cpu",
            "device": 0,
            "state": self.state,
            "slots_total": 1,
            "slots_available": 1 if self.state == "idle" else 0,
            "last_activity": "2026-01-31T08:00:00.000Z",
            "idle_since": None,
            "pid": os.getpid(),
            "failed_health_checks": 0,
            "log_path": "",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pair: _Pair
    is_worker = False
    wbufsize = 0

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)

    def log_message(self, *_args: Any) -> None:
        """Nothing: requests are recorded instead."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path = self.path.partition("?")[0]
        if path == "/_stop_hive":
            self.pair.stop_hive()
            self._json(200, {})
            return
        if path == "/_requests":
            self._json(200, self.pair.requests)
            return
        if self.pair.is_hive_stopped and not self.is_worker:
            self.close_connection = True
            return
        self.pair.requests.append(
            {
                "peer": "worker" if self.is_worker else "hive",
                "method": method,
                "path": self.path,
                "body": body,
                "at": time.monotonic(),
                "authorization": self.headers.get("Authorization"),
                "correlation": self.headers.get("X-Correlation-ID"),
            }
        )
        if self.is_worker:
            self._serve_worker(method, path, body)
        else:
            self._serve_hive(method, path, body)

    def _serve_hive(self, method: str, path: str, body: Any) -> None:
        pair, script = self.pair, self.pair.script
        if script.api_key and self.headers.get("Authorization") != f"Bearer {script.api_key}":
            self._error(401, "INVALID_API_KEY", {})
        elif script.broken_json:
            self._bytes(200, b"{not json", "application/json")
        elif path == "/v1/health":
            self._json(200, self._health())
        elif path == "/v1/workers/list":
            time.sleep(script.list_delay_s)
            workers = [pair.worker_record()] if pair.worker_model else []
            self._json(200, {"workers": workers})
        elif path == "/v1/models/download":
            ready = script.downloads is None
            self._json(
                200, {"download_id": "cached" if ready else "d-1", "local_path": "/m" if ready else None}
            )
        elif path == "/v1/models/download/progress":
            self._events([*[(None, event) for event in script.downloads or []], (None, DONE)])
        elif path == "/v1/workers/spawn":
            self._spawn(body)
        elif path.endswith("/narration"):
            self._events([*[(name, data) for name, data in script.startup], (None, DONE)])
        elif path == "/v1/lease":
            self._json(200, {"owner": body["owner"], "expires_unix": 0})
        elif method == "DELETE" and path.startswith("/v1/workers/"):
            pair.worker_model = None
            self._json(202, {"message": "ending"})
        elif path == "/v1/models":
            models = [{"model_ref": ref, "size_bytes": size} for ref, size in script.catalog.items()]
            self._json(200, {"models": models})
        elif path == "/v1/models/quality":
            self._events([*[(None, event) for event in script.quality], (None, DONE)])
        elif path == "/v1/capabilities":
            self._json(200, self._capabilities())
        elif path == "/v1/logs":
            self._events([(None, {"source": "rbee-hive", "line": "first"}), (None, DONE)])
        else:
            self._error(404, "NOT_FOUND", {})

    def _health(self) -> dict[str, Any]:
        script = self.pair.script
        return {
            "status": "alive",
            "version": script.version,
            "api_version": "v1",
            "service": script.service,
            "node": "scripted",
            "owner": script.owner,
            "pid": os.getpid(),
        }

    def _capabilities(self) -> dict[str, Any]:
        script = self.pair.script
        cuda = [{"device": i, "total_mb": mb, "available_mb": mb} for i, mb in enumerate(script.vram_mb)]
        return {
            "node": "scripted",
            "backends": ["cuda", "cpu"] if cuda else ["cpu"],
            "devices": {"cuda": len(cuda), "cpu": 1} if cuda else {"cpu": 1},
            "ram_total_mb": script.ram_mb,
            "ram_available_mb": script.ram_mb,
            "vram": cuda,
            "disk_available_mb": 100_000,
        }

    def _spawn(self, body: dict[str, Any]) -> None:
        pair, script = self.pair, self.pair.script
        time.sleep(script.spawn_delay_s)
        if script.spawn_error is not None:
            self._json(script.spawn_status, {"error": script.spawn_error})
            return
        reused = "worker_id" in body
        if not reused:
            pair.worker_model, pair.state = body["model_ref"], "loading"
            pair.loading_began = time.monotonic()
        record = pair.worker_record()
        self._json(
            200,
            {
                "worker_id": pair.worker_id,
                "url": pair.worker_url,
                "state": pair.state,
                "model_ref": record["model_ref"],
                "backend": "cpu",
                "device": 0,
                "api_key": WORKER_KEY,
                "reused": reused,
            },
        )

    def _serve_worker(self, method: str, path: str, body: Any) -> None:
        pair, script = self.pair, self.pair.script
        if path == "/v1/health":
            self._json(200, {"status": "healthy", "state": pair.state})
        elif self.headers.get("Authorization") != f"Bearer {WORKER_KEY}":
            self._error(401, "INVALID_API_KEY", {})
        elif path == "/v1/ready":
            self._json(200, {"ready": pair.state == "idle", "state": pair.state})
        elif path == "/v1/loading/progress":
            self._events(self._loading())
        elif path == "/v1/inference" and method == "POST":
            self._infer(body)
        elif method == "DELETE":
            if script.ignore_cancel:
                time.sleep(60)
            pair.canceled.add(path.rsplit("/", 1)[1])
            self._empty(204)
        else:
            self._error(404, "NOT_FOUND", {})

    def _loading(self) -> Iterable[tuple[str | None, Any]]:
        script = self.pair.script
        for layer in script.layers:
            data = {
                "stage": "loading_to_vram",
                "layers_loaded": layer,
                "layers_total": script.layers_total,
                "vram_mb": layer,
            }
            yield None, data
        while script.never_ready:
            time.sleep(0.05)
        self.pair.state = "idle"
        yield None, {"stage": "ready"}
        yield None, DONE

    def _infer(self, body: dict[str, Any]) -> None:
        pair, script = self.pair, self.pair.script
        if script.free_answers > 0:
            script.free_answers -= 1
            self._events(self._tokens(body))
        elif script.busy_answers > 0:
            script.busy_answers -= 1
            self._error(503, "ALL_SLOTS_BUSY", {"slots_total": 1, "slots_busy": 1})
        elif script.hanging_answers > 0:
            script.hanging_answers -= 1
            time.sleep(5)
            self.close_connection = True
        elif script.draining_answers > 0:
            script.draining_answers -= 1
            pair.worker_id, pair.worker_model = "worker-scripted-2", None
            self._error(503, "WORKER_NOT_READY", {"state": "draining"})
        elif self._take_slot(body["request_id"]):
            try:
                time.sleep(script.accept_delay_s)
                self._events(self._tokens(body))
            finally:
                pair.active.discard(body["request_id"])
        else:
            busy = len(pair.active)
            time.sleep(script.refusal_delay_s)
            self._error(503, "ALL_SLOTS_BUSY", {"slots_total": script.slots, "slots_busy": busy})

    def _take_slot(self, request_id: str) -> bool:
        pair = self.pair
        with pair.deciding:
            if pair.script.slots is not None and len(pair.active) >= pair.script.slots:
                return False
            pair.active.add(request_id)
            return True

    def _tokens(self, body: dict[str, Any]) -> Iterable[tuple[str | None, Any]]:
        script, request_id = self.pair.script, body["request_id"]
        yield "started", {"request_id": request_id, "worker_id": self.pair.worker_id, "model": "m"}
        human = "Inference starts"
        yield "narration", {"actor": "llm-worker-rbee", "action": "inference_start", "human": human}
        for index in range(min(script.tokens, body["max_tokens"])):
            if script.crash_after == index:
                raise ConnectionAbortedError
            if script.error_after == index:
                error = {"code": "INFERENCE_FAILED", "message": "engine error", "details": {}}
                yield None, {"error": error}
                yield None, DONE
                return
            while script.stall_after == index and request_id not in self.pair.canceled:
                time.sleep(0.02)
            if request_id in self.pair.canceled:
                return
            yield None, {"token": f" bee{index}", "index": index}
            if script.token_interval_s:
                time.sleep(script.token_interval_s)
        # A worker gives its slot back before its client learns that the answer is complete.
        self.pair.active.discard(request_id)
        yield (
            None,
            {"done": True, "total_tokens": script.tokens, "duration_ms": 1, "stop_reason": "MAX_TOKENS"},
        )
        yield None, DONE

    def _events(self, events: Iterable[tuple[str | None, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for name, data in events:
                text = data if isinstance(data, str) else json.dumps(data)
                block = (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
                raw = block.encode()
                self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.close_connection = True

    def _error(self, status: int, code: str, details: dict[str, Any]) -> None:
        self._json(status, {"error": {"code": code, "message": code.lower(), "details": details}})

    def _json(self, status: int, body: Any) -> None:
        self._bytes(status, json.dumps(body).encode(), "application/json")

    def _empty(self, status: int) -> None:
        self._bytes(status, b"", "application/json")

    def _bytes(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until killed."""
    pair = _Pair(Script(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    servers = []
    for is_worker in (True, False):
        handler = type("Handler", (_Handler,), {"pair": pair, "is_worker": is_worker})
        port = 0 if is_worker else pair.script.port
        server = ThreadingHTTPServer((pair.script.host, port), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop_hive() -> None:
        pair.is_hive_stopped = True
        servers[1].shutdown()
        servers[1].server_close()

    pair.stop_hive = stop_hive
    pair.worker_url = f"http://{pair.script.host}:{servers[0].server_port}"
    hive_url = f"http://{pair.script.host}:{servers[1].server_port}"
    print(f"scripted-hive listening on {hive_url} worker {pair.worker_url}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
