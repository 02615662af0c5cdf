"""Signals: the first ends the command in order, one more during the clean-up makes it hurry."""

from __future__ import annotations

import os
import signal
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into ``KeyboardInterrupt``; later ones are only noted.

    Once the clean-up has begun no signal raises any more, so that it cannot be cut in the middle; what waits
    there asks ``is_hurried``.
    """

    def __init__(self) -> None:
        self._count = 0
        self._count_at_cleanup: int | None = None
        self.last_signal: int | None = None

    def install(self) -> None:
        """Take the signals over, except those the parent told us to ignore (``nohup``, background jobs)."""
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def begin_cleanup(self) -> None:
        """From now on signals are noted only; calling it again changes nothing."""
        if self._count_at_cleanup is None:
            self._count_at_cleanup = self._count

    @property
    def is_hurried(self) -> bool:
        """Whether a signal came after the clean-up began: stop waiting, end things hard."""
        return self._count_at_cleanup is not None and self._count > self._count_at_cleanup

    @property
    def happened(self) -> bool:
        return self._count > 0

    def die_as_signalled(self) -> None:
        """End by the signal itself when it was not Ctrl+C, so that the parent sees the true cause."""
        if self.last_signal in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(self.last_signal, signal.SIG_DFL)
            os.kill(os.getpid(), self.last_signal)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        self.last_signal = number
        if self._count == 1 and self._count_at_cleanup is None:
            raise KeyboardInterrupt
