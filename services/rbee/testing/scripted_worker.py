"""A worker that behaves as its flags say: a real process that speaks a worker's real HTTP, without a model.

It takes the flags of ``llm-worker-rbee`` and those below, so that it can be named by ``pool.worker_command``,
for instance ``python -m rbee.testing.scripted_worker --layers 32 --stuck-at 28``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_HUNG_S = 3600.0


def main() -> int:
    script = _arguments()
    if script.exit_before_http is not None:
        print("scripted worker: giving up before HTTP", file=sys.stderr, flush=True)
        return int(script.exit_before_http)
    if script.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.with_child:
        # Stands for a process that a worker might leave behind; it is of the worker's group.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", script.worker_id])
    if script.no_http:
        time.sleep(_HUNG_S)
    worker = ScriptedWorker(script)
    server = _Server((script.host, script.port), worker)
    if not script.ignore_term:
        signal.signal(signal.SIGTERM, lambda *_: worker.shut_down(0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker.narrate("llm-worker-rbee", "server_bind", f"listening on port {script.port}")
    if not script.no_callback:
        worker.call_back()
    threading.Thread(target=worker.load, daemon=True).start()
    worker.over.wait()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("worker-id", "model", "model-ref", "backend", "host", "callback-url", "api-key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--device", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--layer-ms", type=float, default=0.0, help="time per layer while loading")
    parser.add_argument("--stuck-at", type=int, help="stop loading for ever after so many layers")
    parser.add_argument("--crash-at", type=int, help="die after so many layers")
    parser.add_argument("--load-error", help="fail to load, with this message")
    parser.add_argument("--exit-before-http", type=int, metavar="CODE")
    parser.add_argument("--no-http", action="store_true", help="never listen")
    parser.add_argument("--no-callback", action="store_true")
    parser.add_argument("--ignore-shutdown", action="store_true", help="never answer a shutdown request")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--drain-s", type=float, default=0.0, help="time from acknowledgement to exit")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--token-ms", type=float, default=20.0)
    parser.add_argument("--with-child", action="store_true")
    return parser.parse_args()


class ScriptedWorker:
    """The state of the stand-in: one slot, a loading story, and what the script makes of them."""

    def __init__(self, script: argparse.Namespace) -> None:
        self.script = script
        self.key = Path(script.api_key.removeprefix("@")).read_text(encoding="ascii").strip()
        self.over = threading.Event()
        self.state = "loading"
        self.idle_since: str | None = None
        self.events: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.canceled: set[str] = set()

    def narrate(self, actor: str, action: str, human: str) -> None:
        line = {"type": "narration", "actor": actor, "action": action, "human": human}
        print(json.dumps(line), flush=True)

    def call_back(self) -> None:
        script, parts = self.script, urlsplit(self.script.callback_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        body = {
            "worker_id": script.worker_id,
            "url": f"http://{script.host}:{script.port}",
            "model_ref": script.model_ref,
            "backend": script.backend,
            "device": script.device,
        }
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST", parts.path, json.dumps(body), headers)
        answer = connection.getresponse()
        print(f"callback answered {answer.status}", file=sys.stderr, flush=True)
        connection.close()

    def load(self) -> None:
        script = self.script
        for layer in range(script.layers + 1):
            self._tell({"stage": "loading_to_vram", "layers_loaded": layer, "layers_total": script.layers})
            if script.crash_at == layer:
                print("scripted worker: crashing", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            if script.stuck_at == layer:
                return
            time.sleep(script.layer_ms / 1000)
        if script.load_error is not None:
            self.state = "error"
            self._tell({"stage": "error", "message": script.load_error})
        elif self.state == "loading":
            self.become_idle()
            self._tell({"stage": "ready"})

    def has_more_events(self, seen: int) -> bool:
        return len(self.events) > seen

    def become_idle(self) -> None:
        self.idle_since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        self.state = "idle"

    def take_slot(self) -> bool:
        with self.changed:
            if self.state != "idle":
                return False
            self.state, self.idle_since = "busy", None
            return True

    def free_slot(self) -> None:
        with self.changed:
            if self.state == "busy":
                self.become_idle()

    def shut_down(self, drain_s: float) -> None:
        self.state, self.idle_since = "draining", None
        threading.Timer(drain_s, self.over.set).start()

    def facts(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "model_loaded": self.state in ("idle", "busy"),
            "slots_total": 1,
            "slots_available": int(self.state == "idle"),
            "active_requests": int(self.state == "busy"),
            "idle_since": self.idle_since,
            "vram_bytes": 1024,
        }

    def _tell(self, event: dict[str, Any]) -> None:
        with self.changed:
            self.events.append({**event, "vram_mb": 0} if "layers_loaded" in event else event)
            self.changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], worker: ScriptedWorker) -> None:
        self.worker = worker
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        worker = self.server.worker
        if self.path in ("/health", "/v1/health"):
            self._answer(200, {"status": "healthy", "service": "llm-worker-rbee", **worker.facts()})
        elif not self._is_admitted():
            return
        elif self.path == "/v1/ready":
            ready = worker.state == "idle"
            self._answer(200, {"ready": ready, "progress_url": "/v1/loading/progress", **worker.facts()})
        elif self.path == "/v1/loading/progress":
            self._stream_loading()
        else:
            self._fail(404, "NOT_FOUND", "No such path")

    def do_POST(self) -> None:
        worker, body = self.server.worker, self._body()
        if not self._is_admitted():
            return
        if self.path == "/v1/admin/shutdown":
            if worker.script.ignore_shutdown:
                time.sleep(_HUNG_S)
            self._answer(202, {"status": "draining"})
            worker.shut_down(worker.script.drain_s)
        elif self.path == "/v1/inference":
            self._generate(body)
        else:
            self._fail(404, "NOT_FOUND", "No such path")

    def do_DELETE(self) -> None:
        if self._is_admitted():
            self.server.worker.canceled.add(self.path.rsplit("/", 1)[1])
            self.send_response(204)
            self.end_headers()

    def _generate(self, body: dict[str, Any]) -> None:
        worker, script = self.server.worker, self.server.worker.script
        request_id = str(body.get("request_id"))
        if not worker.take_slot():
            self._fail(503, "ALL_SLOTS_BUSY", "Worker is busy, try again later")
            return
        try:
            self._begin_stream()
            wanted = min(script.tokens, int(body.get("max_tokens", 100)))
            for index in range(wanted):
                if request_id in worker.canceled:
                    self._event({"error": {"code": "REQUEST_CANCELED", "message": "canceled", "details": {}}})
                    break
                self._event({"token": f"{index} ", "index": index})
                time.sleep(script.token_ms / 1000)
            else:
                self._event({"done": True, "total_tokens": wanted, "stop_reason": "MAX_TOKENS"})
        except OSError:
            return
        finally:
            worker.free_slot()
        self._end_stream()

    def _stream_loading(self) -> None:
        worker, position = self.server.worker, 0
        self._begin_stream()
        while True:
            with worker.changed:
                worker.changed.wait_for(partial(worker.has_more_events, position))
                fresh = worker.events[position:]
            position += len(fresh)
            for event in fresh:
                self._event(event)
                if event["stage"] in ("ready", "error"):
                    self._end_stream()
                    return

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def _end_stream(self) -> None:
        self.wfile.write(b"data: [DONE]\n\n")

    def _body(self) -> dict[str, Any]:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return dict(json.loads(raw)) if raw else {}

    def _is_admitted(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server.worker.key}":
            return True
        self._fail(401, "INVALID_API_KEY", "Invalid or missing API key")
        return False

    def _fail(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": {"code": code, "message": message, "details": {}}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_request(self, code: int | str = "-", _size: int | str = "-") -> None:
        line = {
            "timestamp": datetime.now(UTC).isoformat(),
            "event": "http_request",
            "method": self.command,
            "path": self.path,
            "status": int(code),
        }
        # One write per line: several requests may be answered at the same moment.
        sys.stderr.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
