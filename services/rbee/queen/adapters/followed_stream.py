"""An event stream whose blocks are taken where the event loop learns of them, without waking a greenlet.

Relaying a token in a greenlet costs two switches, a read that finds nothing yet, and the timers around them:
as much again as reading and writing it.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.hub import Waiter

from rbee.core.client import EventStream, TransportFailure

_READABLE = 1


class FollowedStream(EventStream):
    """``EventStream`` for gevent's loop."""

    def follow(self, accept: Callable[[bytes], bool]) -> bytes:
        while (block := self.take_block()) is not None:
            if not block or not accept(block):
                return block
        descriptor = self._answer.fileno()
        receive_chunk = self._answer.chunk_receiver()
        if descriptor is None or receive_chunk is None:
            return super().follow(accept)
        hub = gevent.get_hub()
        waiter: Waiter[bytes] = Waiter(hub)
        watcher = hub.loop.io(descriptor, _READABLE)

        def on_readable() -> None:
            try:
                block = receive_chunk()
                if block is not None and not self._partial and block.endswith(b"\n\n"):
                    if accept(block):
                        return
                else:
                    self._partial += block or b""
                    while (block := self.take_block()) and accept(block):
                        pass
                    if block is None:
                        return
                watcher.stop()
                waiter.switch(block)
            except Exception as error:
                watcher.stop()
                waiter.throw(error)

        watcher.start(on_readable)
        try:
            return waiter.get()
        except TransportFailure:
            self.close()
            raise
        finally:
            watcher.stop()
            watcher.close()
