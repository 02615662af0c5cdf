"""Speed of a download against curl, and of a verification against sha256sum, on the same file."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.measuring import Table, median

SIZE = 256 * 2**20
ROUNDS = 5
_BLOCK = 16 * 2**20

_DOWNLOAD = """
import json, sys, time
from pathlib import Path
from rbee.models.download import RemoteFile, download
from rbee.models.transfers import RetryPolicy, Transfer
class Nobody:
    def begin(self, done): pass
    def received(self, done, total): pass
    def narrate(self, action, human): pass
url, target, size, sha256 = sys.argv[1:]
begun, cpu = time.perf_counter(), time.process_time()
remote = RemoteFile(url, int(size), sha256)
download(remote, Path(target), Transfer(RetryPolicy(), Nobody()), lambda status, headers: None)
print(json.dumps([time.perf_counter() - begun, time.process_time() - cpu]))
"""
_VERIFY = """
import json, sys, time
from pathlib import Path
from rbee.models.file_digests import digests_of
begun, cpu = time.perf_counter(), time.process_time()
digests_of(Path(sys.argv[1]), lambda count: None)
print(json.dumps([time.perf_counter() - begun, time.process_time() - cpu]))
"""


class _FileServer(BaseHTTPRequestHandler):
    """Sends one file from the page cache without copying it through Python."""

    protocol_version = "HTTP/1.1"
    path_served: Path

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal is for the table."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self.path_served.stat().st_size))
        self.send_header("ETag", '"1"')
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        with self.path_served.open("rb") as file:
            self.connection.sendfile(file)
        self.close_connection = True


def serve(path: Path) -> None:
    """Print the URL of the file and serve it until standard input closes."""
    handler = type("Served", (_FileServer,), {"path_served": path})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}/{path.name}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The URL of the file, on a server in a process of its own."""
    command = [sys.executable, "-m", "bench.download", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def sample(path: Path) -> str:
    """Write a file of random bytes; returns its SHA-256 as sha256sum tells it."""
    with path.open("wb") as file:
        for _ in range(SIZE // _BLOCK):
            file.write(os.urandom(_BLOCK))
    done = subprocess.run(["sha256sum", str(path)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()[0]


Taken = tuple[float, float]
"""Seconds by the clock, and seconds of CPU."""


def timed(*command: str) -> Taken:
    """What a program takes from start to end."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, cpu


def told(code: str, *arguments: str) -> Taken:
    """What a script of ours reports, without its start."""
    command = [sys.executable, "-c", code, *arguments]
    elapsed, cpu = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return float(elapsed), float(cpu)


def measure() -> Table:
    """Every way once a round, one after the other, so that other work on the machine meets all alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = folder / "model.gguf", folder / "fetched.gguf"
        digest = sample(source)
        samples: dict[str, list[Taken]] = {}
        with served(source) as url:
            ways: dict[str, Callable[[], Taken]] = {
                "curl": lambda: timed("curl", "-sS", "-o", str(target), url),
                "rbee download, digest checked": lambda: told(_DOWNLOAD, url, str(target), str(SIZE), digest),
                "sha256sum": lambda: timed("sha256sum", str(source)),
                "rbee verify": lambda: told(_VERIFY, str(source)),
            }
            for _ in range(ROUNDS):
                for way, run in ways.items():
                    target.unlink(missing_ok=True)
                    samples.setdefault(way, []).append(run())
    rows = []
    for way, taken in samples.items():
        reference = "sha256sum" if way in ("sha256sum", "rbee verify") else "curl"
        took, cpu = (median([sample[kind] for sample in taken]) for kind in (0, 1))
        ratio = took / median([sample[0] for sample in samples[reference]])
        speed = f"{SIZE / 2**20 / took:.0f} MB/s"
        rows.append([way, f"{took:.2f} s", f"{cpu:.2f} s", speed, f"{ratio:.2f}", reference])
    note = (
        f"{SIZE // 2**20} MB of random bytes from a server on loopback; medians of {ROUNDS} rounds. "
        "curl checks no digest and syncs nothing to disk; rbee does both before it takes a file for complete."
    )
    return Table(
        "Download and verification", ["way", "time", "CPU", "speed", "times as long", "as"], rows, note
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(Path(sys.argv[1]))
    else:
        print(measure().text())
