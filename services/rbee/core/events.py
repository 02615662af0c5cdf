"""Server-sent events: writing them, and reading them from arbitrary chunks without loss.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html. The reader keeps the raw bytes of
every event, because a relay forwards them unchanged; that is why it is our own and not a library's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rbee.core.errors import RbeeError

DONE = b"data: [DONE]\n\n"
"""The very last event of every stream."""

KEEP_ALIVE = b": keep-alive\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LINE_END = re.compile("\r\n|\n|\r")


def encode_event(data: Any, name: str | None = None) -> bytes:
    """One event whose data is ``data`` as JSON on a single line."""
    body = _encode(data)
    return (f"event: {name}\ndata: {body}\n\n" if name else f"data: {body}\n\n").encode()


def encode_error(error: RbeeError) -> bytes:
    """The unnamed event that ends a stream by an error."""
    return encode_event(error.envelope())


def encode_narration(actor: str, action: str, human: str) -> bytes:
    """A narration event; the text is cut to 100 characters (retry lines are told in full)."""
    return encode_event(narration(actor, action, human), "narration")


def narration(actor: str, action: str, human: str) -> dict[str, str]:
    """The data of a narration event."""
    if action != "retry" and len(human) > 100:
        human = human[:99] + "…"
    return {"actor": actor, "action": action, "human": human}


@dataclass(frozen=True, slots=True)
class Event:
    """One event as received: its name (empty when unnamed), its data text, and its bytes as they came."""

    name: str
    data: str
    raw: bytes

    @property
    def is_done_marker(self) -> bool:
        return self.data == "[DONE]"

    def json(self) -> Any:
        """The data decoded.

        Raises:
            ValueError: the data is not JSON.
        """
        return json.loads(self.data)


class EventReader:
    """Cuts a byte stream into events: CRLF or LF, comments, ``id:`` lines, characters split across chunks."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events completed by ``chunk``; comments alone yield nothing."""
        self._buffer = self._buffer + chunk if self._buffer else chunk
        while True:
            end = _block_end(self._buffer)
            if end < 0:
                return
            block, self._buffer = self._buffer[:end], self._buffer[end:]
            event = _parse_block(block)
            if event is not None:
                yield event

    @property
    def pending(self) -> bytes:
        """Bytes of an event that is not complete yet."""
        return self._buffer


def _block_end(buffer: bytes) -> int:
    """Index after the blank line that ends the first block, or -1."""
    plain = buffer.find(b"\n\n")
    carriage = buffer.find(b"\r\n\r\n")
    if carriage >= 0 and (plain < 0 or carriage < plain):
        return carriage + 4
    return plain + 2 if plain >= 0 else -1


def _parse_block(block: bytes) -> Event | None:
    name, data = "", []
    # Not str.splitlines, which would also cut at characters that may stand inside a line, such as U+0085.
    for line in _LINE_END.split(block.decode("utf-8", "replace")):
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("event:"):
            name = line[6:].strip()
    if not data and not name:
        return None
    return Event(name, "\n".join(data), block)
