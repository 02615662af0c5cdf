"""From token ids to the text of token events: whole characters, nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from rbee.worker.ports import Decoder


class StopStrings:
    """Lets text through up to the first stop string.

    The first is the one that is complete first; of two that end together the longer. How the text is cut into
    pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.has_matched = False

    @property
    def is_holding(self) -> bool:
        """Whether text is held back that may become a stop string."""
        return bool(self._held)

    def feed(self, text: str) -> str:
        """The text that is now certain to belong to the answer."""
        if self.has_matched:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.has_matched, self._held = True, ""
            return text[: min(found)[1]]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that is the beginning of a stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class AnswerText:
    """The text of each token event of one answer, in order; joined it is the whole answer.

    While a character or a possible stop string is incomplete, the latest event is kept back until the next
    token comes: should there be none, the rest of the text still has an event to go with.
    """

    def __init__(self, decoder: Decoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stops)
        self._kept: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has come: no more tokens are wanted."""
        return self._stops.has_matched

    def feed(self, token_id: int) -> list[str]:
        """Texts of the events that can go out now."""
        text = self._stops.feed(self._decoder.feed(token_id))
        ready = [] if self._kept is None else [self._kept]
        if self._stops.is_holding or (self._decoder.is_pending and not self._stops.has_matched):
            self._kept = text
        else:
            self._kept = None
            ready.append(text)
        return ready

    def finish(self) -> list[str]:
        """Texts of the events that are left when no more tokens come."""
        if self._kept is None:
            return []
        rest = self._stops.feed(self._decoder.flush()) + self._stops.flush()
        text, self._kept = self._kept + rest, None
        return [text]
