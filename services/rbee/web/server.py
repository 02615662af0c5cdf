"""Runs one service under gunicorn with exactly one gevent worker: bind, announce, serve, drain, exit."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import gunicorn.app.base
import gunicorn.glogging
from gunicorn.errors import HaltServer
from gunicorn.workers.ggevent import GeventWorker

from rbee.core.processes import die_with_parent

BOOT_FAILURES = (3, 4)
"""gunicorn's exit codes for a worker or an application that could not start."""
_KEEPALIVE_S = 75
_FAREWELL_S = 5.0


class Service(Protocol):
    """What a daemon serves, built in the serving process after gevent has patched it."""

    app: Any
    """The WSGI application."""

    def listening(self) -> None:
        """Called once connections are accepted: start background work here."""

    def shut_down(self) -> None:
        """The cascade on SIGTERM, SIGINT or a request to end; HTTP is still served while it runs."""

    def reload(self) -> None:
        """SIGHUP: read the key file again."""


@dataclass(frozen=True)
class Serving:
    """Facts and controls a service gets from its server."""

    host: str
    port: int
    daemon_pid: int
    """The pid that signals go to and that others may watch."""
    _stop: list[Callable[[], None]] = field(default_factory=list)
    _fail: list[Callable[[str], None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{_url_host(self.host)}:{self.port}"

    def request_shutdown(self) -> None:
        """Begin the cascade as if SIGTERM had come; returns at once."""
        for stop in self._stop:
            stop()

    def fail(self, reason: str) -> None:
        """End the daemon with exit code 1 and an ``Error:`` line, without a cascade; returns at once."""
        for fail in self._fail:
            fail(reason)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; bound here, so that a taken port is told at once and by name.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def run_daemon(program: str, listener: socket.socket, build: Callable[[Serving], Service]) -> int:
    """Serve until told to stop; returns the exit code (0 after an orderly end).

    Args:
        program: name in the line printed when connections are accepted.
        listener: from ``bind``.
        build: makes the service; runs in the serving process.
    """
    host, port = listener.getsockname()[:2]
    serving = Serving(host, port, os.getpid())
    options = {
        "bind": f"fd://{listener.fileno()}",
        "workers": 1,
        "worker_class": f"{__name__}.DaemonWorker",
        "worker_connections": 4096,
        "timeout": 0,
        "graceful_timeout": 3600,
        "keepalive": _KEEPALIVE_S,
        "limit_request_field_size": 65536,
        "logger_class": f"{__name__}.PlainLogger",
        "proc_name": program,
        "on_starting": _adopt_arbiter,
        "child_exit": _end_with_worker,
        "control_socket_disable": True,
    }
    application = _Application(program, serving, build, options)
    try:
        application.run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        return 1 if code in BOOT_FAILURES or code < 0 else code
    return 0


class _Application(gunicorn.app.base.BaseApplication):
    def __init__(
        self,
        program: str,
        serving: Serving,
        build: Callable[[Serving], Service],
        options: dict[str, Any],
    ) -> None:
        self.program = program
        self.serving = serving
        self._build = build
        self._options = options
        self.service: Service | None = None
        super().__init__()

    def load_config(self) -> None:
        for key, value in self._options.items():
            if key in self.cfg.settings:
                self.cfg.set(key, value)

    def load(self) -> Any:
        self.service = self._build(self.serving)
        return self.service.app


class PlainLogger(gunicorn.glogging.Logger):
    """Leaves gunicorn's own messages to the process's logging; requests are logged by the application."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002 (gunicorn's signature)
        self.error_log = logging.getLogger("gunicorn.error")
        self.error_log.propagate = True
        self.access_log = logging.getLogger("gunicorn.access")

    def access(self, *_request: Any) -> None:
        """Nothing: the application writes one line per request itself."""

    def reopen_files(self) -> None:
        """Nothing: log files are rotated by size."""

    def close_on_exec(self) -> None:
        """Nothing: Python's files are not inherited."""


class DaemonWorker(GeventWorker):
    """gunicorn's gevent worker with our end: a cascade first, then leave as soon as no request is running."""

    def patch(self) -> None:
        """As gunicorn does it, but without a look for plugins of gevent."""
        with _no_entry_points():
            super().patch()

    def init_signals(self) -> None:
        """Signals start a greenlet instead of ending the process where it stands."""
        import gevent

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            gevent.signal_handler(number, self.begin_shutdown)
        gevent.signal_handler(signal.SIGHUP, lambda: self.app.service.reload())
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
            signal.signal(number, signal.SIG_IGN)

    def run(self) -> None:
        """Serve until the cascade is over."""
        import gevent
        from gevent.event import Event
        from gevent.pool import Pool
        from gevent.server import StreamServer

        # Who spawned whom: nothing of ours asks, and noting it is half of what making a greenlet takes.
        gevent.config.track_greenlet_tree = False
        # The daemon is one program to its users: a SIGKILL to its arbiter must not leave a half alive.
        die_with_parent()
        self._in_flight = 0
        self._is_stopping = False
        self._over = Event()
        servers = []
        for listener in self.sockets:
            listener.setblocking(1)
            handler = _handler_for(self, listener)
            server = StreamServer(listener, handle=handler, spawn=Pool(self.worker_connections))
            server.start()
            servers.append(server)
        self.app.serving._stop.append(lambda: os.kill(self.ppid, signal.SIGTERM))
        self.app.serving._fail.append(self.give_up)
        print(f"{self.app.program} listening on {self.app.serving.url}", flush=True)
        self.app.service.listening()
        # What has been loaded stays: all streams stand still while it is looked through for cycles.
        gc.freeze()
        while not self._over.wait(1.0):
            self.notify()
            if os.getppid() != self.ppid:
                os._exit(1)
        for server in servers:
            server.close()
        with gevent.Timeout(_FAREWELL_S, False):
            while self._in_flight:
                gevent.sleep(0.02)

    def begin_shutdown(self) -> None:
        """Run the service's cascade once, then let ``run`` return."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self.alive = False
        try:
            self.app.service.shut_down()
        finally:
            self._over.set()

    def give_up(self, reason: str) -> None:
        """Let ``run`` return unasked; the arbiter takes that for a failure and ends with exit code 1."""
        fail_start(reason)
        self._over.set()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Count requests under way, so that the end waits for them and not for idle connections."""
        self._in_flight += 1
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            self._in_flight -= 1

    def handle_error(self, req: Any, client: Any, addr: Any, error: BaseException) -> None:
        """A request that is not HTTP gets the envelope of every other error."""
        if isinstance(error, Exception):
            _refuse_malformed(client)
        else:
            super().handle_error(req, client, addr, error)


@contextmanager
def _no_entry_points() -> Iterator[None]:
    """While gevent patches, it reads what all installed packages offer more than twenty times: 0.15 s."""
    real = importlib.metadata.entry_points
    importlib.metadata.entry_points = lambda **_: ()  # type: ignore[assignment]
    try:
        yield
    finally:
        importlib.metadata.entry_points = real


def _handler_for(worker: DaemonWorker, listener: Any) -> Callable[[Any, Any], None]:
    def handle(client: Any, address: Any) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        worker.handle(listener, client, address)

    return handle


def _refuse_malformed(client: Any) -> None:
    body = (
        b'{"error":{"code":"INVALID_REQUEST","message":"Malformed HTTP request","details":{"errors":'
        b'[{"field":"request","constraint":"http","message":"malformed HTTP request"}]}}}'
    )
    head = (
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    try:
        client.sendall(head.encode() + body)
    except OSError:
        return


def _adopt_arbiter(arbiter: Any) -> None:
    """One worker for the life of the daemon: signals that would reload, fork or scale do not."""
    arbiter.handle_int = arbiter.handle_quit = arbiter.handle_term
    arbiter.handle_hup = lambda: arbiter.kill_workers(signal.SIGHUP)
    for name in ("ttin", "ttou", "usr1", "usr2", "winch"):
        setattr(arbiter, f"handle_{name}", lambda: None)


def _end_with_worker(arbiter: Any, worker: Any) -> None:
    """The daemon is its serving process; when that has gone it ends, instead of forgetting the registry."""
    if arbiter.LISTENERS:
        raise HaltServer(f"the serving process {worker.pid} ended", 1)
    # As was asked for. The arbiter itself would look for it only every tenth of a second.
    raise SystemExit(0)


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def fail_start(message: str) -> int:
    """Say why a daemon cannot start; returns its exit code."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return 1
