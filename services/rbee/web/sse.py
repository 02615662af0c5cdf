"""Server-sent event answers that end exactly once, break silence, and notice a client that has gone."""

from __future__ import annotations

import _socket
import contextlib
import contextvars
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import flask
import gevent
import gevent.queue

from rbee.core.errors import RbeeError, ServiceUnavailable
from rbee.core.events import DONE, KEEP_ALIVE, encode_error, encode_event, encode_narration
from rbee.core.logs import get_logger
from rbee.web.app import correlation_id
from rbee.web.errors import internal_error

BUFFERED_EVENTS = 100
_FULL_GRACE_S = 1.0
_FIRST_SIGN_S = 0.1
_READABLE = 1
_NOW = int(socket.MSG_DONTWAIT)
_PULSES = 4
"""How often in the time of allowed silence the streams are looked at."""


class ClientGone(gevent.GreenletExit):
    """Raised inside a producer when its client left or fell too far behind; let it pass."""


class Emitter:
    """What a producer writes its stream to."""

    def __init__(self) -> None:
        self._queue: gevent.queue.Queue[bytes | None] = gevent.queue.Queue(BUFFERED_EVENTS)
        self._wire: _Wire | None = None
        self.concluded = False
        """Whether the terminal event has been sent."""
        self.sent_at = time.monotonic()
        """When the last bytes were handed over."""

    def send(self, raw: bytes) -> None:
        """Send bytes of whole events as they are, or queue them while the client is behind.

        Raises:
            ClientGone: the reader is 100 events behind and does not catch up.
        """
        self.sent_at = time.monotonic()
        wire = self._wire
        if wire is not None and not wire.is_behind and self._queue.empty():
            raw = wire.write(raw)
            if not raw:
                return
        try:
            self._queue.put_nowait(raw)
        except gevent.queue.Full:
            try:
                self._queue.put(raw, timeout=_FULL_GRACE_S)
            except gevent.queue.Full:
                raise ClientGone() from None

    def try_send(self, raw: bytes) -> bool:
        """Send bytes of whole events if that is possible without waiting; for callbacks of the event loop."""
        wire = self._wire
        if wire is None or wire.is_behind or not self._queue.empty():
            return False
        try:
            rest = wire.write(raw)
        except ClientGone:
            return False
        self.sent_at = time.monotonic()
        if rest:
            self._queue.put_nowait(rest)
        return True

    def event(self, data: Any, name: str | None = None) -> None:
        self.send(encode_event(data, name))

    def narrate(self, actor: str, action: str, human: str) -> None:
        self.send(encode_narration(actor, action, human))

    def conclude(self, raw: bytes) -> None:
        """Send the terminal event; nothing but ``[DONE]`` follows."""
        self.concluded = True
        self.send(raw)

    def fail(self, error: RbeeError) -> None:
        """End the stream by an error."""
        if not self.concluded:
            self.conclude(encode_error(error))


class _Rest(bytes):
    """What is left of a chunk whose beginning has been written: it has its frame already."""


_NO_REST = _Rest()


class _Wire:
    """A client's connection once the answer's head is out.

    Events are written to it straight from the producer: the way through the queue, a second greenlet and the
    WSGI server's own writing costs more than all the rest of relaying a token.
    """

    def __init__(self, client: socket.socket, *, is_chunked: bool) -> None:
        self._client = client
        # The built-in type, which gevent does not replace: its own would wait for room.
        self._plain = _socket.socket(fileno=client.fileno())
        self._is_chunked = is_chunked
        self.is_behind = False
        """Whether bytes wait in the queue, so that others must line up behind them."""

    def _frame(self, raw: bytes) -> bytes:
        """The bytes as a chunk (RFC 9112, 7.1) where the answer is chunked."""
        return b"%x\r\n%b\r\n" % (len(raw), raw) if self._is_chunked else raw

    def write(self, raw: bytes) -> _Rest:
        """Write what fits without waiting; returns the rest, which must be queued."""
        # The same as _frame does, which would be one more call for every token.
        framed = b"%x\r\n%b\r\n" % (len(raw), raw) if self._is_chunked else raw
        try:
            sent = self._plain.send(framed, _NOW)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise ClientGone() from None
        if sent == len(framed):
            self.is_behind = False
            return _NO_REST
        self.is_behind = True
        return _Rest(framed[sent:])

    def write_all(self, queued: bytes) -> None:
        """Write something from the queue, waiting for room; nobody else writes meanwhile.

        Raises:
            OSError: the client is gone.
        """
        self.is_behind = True
        self._client.sendall(queued if isinstance(queued, _Rest) else self._frame(queued))

    def release(self) -> None:
        """Forget the connection, which stays open."""
        self._plain.detach()


Producer = Callable[[Emitter], None]


class OpenStreams:
    """The event streams a service has open, so that a shutdown can end each with an error and ``[DONE]``."""

    def __init__(self, component: str, keepalive_s: float) -> None:
        self._log = get_logger(component)
        self._keepalive_s = keepalive_s
        self._open: set[_Stream] = set()
        self._pulse: gevent.Greenlet | None = None

    def __len__(self) -> int:
        return len(self._open)

    def respond(
        self,
        produce: Producer,
        *,
        headers: dict[str, str] | None = None,
        must_conclude: bool = False,
    ) -> flask.Response:
        """Answer the current request with the events of ``produce``, which runs in a greenlet of its own.

        An ``RbeeError`` raised by it becomes the terminal event; any other exception is logged and becomes
        INTERNAL_ERROR. ``[DONE]`` always comes last. When the client leaves, ``ClientGone`` is raised inside
        the producer, so that its ``finally`` blocks release what it holds.

        Args:
            must_conclude: returning without a terminal event is a defect (streams of tokens).
        """
        environ = flask.request.environ
        stream = _Stream(
            produce,
            self._log,
            min(_FIRST_SIGN_S, self._keepalive_s),
            must_conclude,
            environ.get("gunicorn.socket"),
            environ.get("SERVER_PROTOCOL") == "HTTP/1.1",
            correlation_id() or "",
        )
        self._open.add(stream)
        if self._pulse is None:
            self._pulse = gevent.spawn(self._break_silence)
        answer = flask.Response(stream.chunks(), content_type="text/event-stream")
        answer.headers["Cache-Control"] = "no-cache"
        answer.headers["X-Accel-Buffering"] = "no"
        answer.headers.update(headers or {})

        def closed() -> None:
            stream.stop()
            self._open.discard(stream)

        answer.call_on_close(closed)
        return answer

    def _break_silence(self) -> None:
        """Send comments on silent streams, for as long as there are streams; one greenlet serves all."""
        while self._open:
            gevent.sleep(self._keepalive_s / _PULSES)
            silent_since = time.monotonic() - self._keepalive_s * (1 - 1 / _PULSES)
            for stream in list(self._open):
                if stream.sent_at <= silent_since:
                    stream.break_silence()
        self._pulse = None

    def end_all(self, reason: str) -> None:
        """End every open stream with SERVICE_UNAVAILABLE."""
        for stream in list(self._open):
            stream.abort(ServiceUnavailable(reason))


class _ClientWatch:
    """Tells when the client closes its end of the connection; a half-closed connection counts as gone.

    A callback of the event loop: a greenlet for it would be a third of a stream's memory.
    """

    def __init__(self, client: socket.socket, on_gone: Callable[[], None]) -> None:
        # The built-in type, which gevent does not replace: its own would wait for data.
        self._plain = _socket.socket(fileno=client.fileno())
        self._on_gone = on_gone
        self._watcher = gevent.get_hub().loop.io(client.fileno(), _READABLE)
        self._watcher.start(self._look)

    def _look(self) -> None:
        try:
            is_gone = self._plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return
        except OSError:
            is_gone = True
        # What else it may have sent stays where it is, and would be told again and again.
        self._watcher.stop()
        if is_gone:
            self._on_gone()

    def stop(self) -> None:
        """Leave the socket to whoever reads it next."""
        self._watcher.stop()
        self._watcher.close()
        self._plain.detach()


class _Stream:
    def __init__(
        self,
        produce: Producer,
        log: Any,
        first_sign_s: float,
        must_conclude: bool,
        client: socket.socket | None,
        is_chunked: bool,
        identity: str,
    ) -> None:
        self._produce = produce
        self._log = log
        self._first_sign_s = first_sign_s
        self._must_conclude = must_conclude
        self._client = client
        self._is_chunked = is_chunked
        self._identity = identity
        self._emitter = Emitter()
        self._context = contextvars.copy_context()
        self._producer = gevent.spawn(self._context.run, self._run)
        self._watch = None if client is None else _ClientWatch(client, self._lose_client)

    @property
    def sent_at(self) -> float:
        return self._emitter.sent_at

    def break_silence(self) -> None:
        """Send a comment, unless the client is behind and has other things to read."""
        if self._emitter._queue.empty():
            with contextlib.suppress(ClientGone):
                self._emitter.send(KEEP_ALIVE)

    def chunks(self) -> Iterator[bytes]:
        """The body for the WSGI server; after the first part of it, events go to the wire by themselves."""
        queue = self._emitter._queue
        try:
            # Headers leave with the first bytes: a stream that begins in silence shows itself by a comment.
            item = queue.get(timeout=self._first_sign_s)
        except gevent.queue.Empty:
            item = KEEP_ALIVE
        while item is not None:
            # What has piled up goes out in one write.
            pieces = [item]
            while not queue.empty() and item is not None:
                item = queue.get_nowait()
                if item is not None:
                    pieces.append(item)
            yield b"".join(pieces)
            if item is None:
                return
            if self._client is not None and queue.empty():
                self._follow(_Wire(self._client, is_chunked=self._is_chunked))
                return
            item = queue.get()

    def _follow(self, wire: _Wire) -> None:
        """Write what the producer could not write at once, until it ends."""
        queue = self._emitter._queue
        self._emitter._wire = wire
        try:
            while (queued := queue.get()) is not None:
                wire.write_all(queued)
                wire.is_behind = not queue.empty()
        finally:
            self._emitter._wire = None
            wire.release()

    def stop(self) -> None:
        """The answer is over, finished or not: stop the watcher and a producer that still runs."""
        # The two know each other: let go, so that a stream goes with its last user and not with the next look
        # for cycles, which is rare.
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
        self._producer.kill(ClientGone, block=False)

    def abort(self, error: RbeeError) -> None:
        """End the stream from outside, by an error."""
        self._producer.kill(_Aborted(error), block=False)

    def _run(self) -> None:
        emitter = self._emitter
        try:
            try:
                self._produce(emitter)
                if self._must_conclude and not emitter.concluded:
                    raise RuntimeError("a producer returned without a terminal event")
            except _Aborted as aborted:
                emitter.fail(aborted.error)
            except RbeeError as error:
                emitter.fail(error)
            except Exception as error:
                self._log.error("internal_error", message=type(error).__name__, exc_info=error)
                emitter.fail(internal_error(self._identity))
            emitter.send(DONE)
            emitter._queue.put(None)
        except ClientGone:
            self._disconnect()

    def _lose_client(self) -> None:
        self._producer.kill(ClientGone, block=False)

    def _disconnect(self) -> None:
        """Unblock the writer: a client that does not read would hold it for ever."""
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
        try:
            self._emitter._queue.put_nowait(None)
        except gevent.queue.Full:
            return


class _Aborted(gevent.GreenletExit):
    def __init__(self, error: RbeeError) -> None:
        super().__init__()
        self.error = error
