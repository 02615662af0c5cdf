"""Prints what the services say they are doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_keeper.progress import ProgressDisplay
from rbee_keeper.terminal import Style, Terminal

EVERY_FEW_TOKENS = "token_generate"


def narration_lines(event: Mapping[str, Any]) -> list[str]:
    """``[actor] text``; retries are literal lines without the prefix."""
    text = str(event.get("human", ""))
    lines = text.splitlines() or [""]
    if event.get("action") == "retry":
        return lines
    return [f"[{event.get('actor', 'rbee')}] {line}" for line in lines]


class Narrator:
    """Narration on standard error.

    Where tokens and narration share a terminal, a line in the middle of the text would tear it apart: it
    waits until the text has ended, and the running count of tokens, which the eye sees anyway, is left out.
    """

    def __init__(self, terminal: Terminal, progress: ProgressDisplay, *, quiet: bool = False) -> None:
        self._terminal = terminal
        self._progress = progress
        self._quiet = quiet
        self._held_back: list[str] = []
        self._text_has_begun = False

    def text_begins(self) -> None:
        self._text_has_begun = True

    def text_ended(self) -> None:
        """Print what waited for the end of the text."""
        self._text_has_begun = False
        held_back, self._held_back = self._held_back, []
        for line in held_back:
            self._print(line)

    def show(self, event: Mapping[str, Any]) -> None:
        """Take in one narration event."""
        if self._quiet:
            return
        waits = self._text_has_begun and self._terminal.is_shared
        if waits and event.get("action") == EVERY_FEW_TOKENS:
            return
        if not self._terminal.stderr_is_tty or event.get("action") == "retry":
            # In place the bar moves on below the narration, unless what it showed has just failed.
            self._progress.settle()
        for line in narration_lines(event):
            if waits:
                self._held_back.append(line)
            else:
                self._print(line)

    def _print(self, line: str) -> None:
        self._terminal.note(line, Style.NARRATION)
