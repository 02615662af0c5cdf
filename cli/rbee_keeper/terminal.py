"""Standard output and standard error of the keeper: tokens here, everything else there, bars in place."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import TextIO

from rbee_keeper.failures import KeeperFailure, OutputClosed

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CLEAR_LINE = "\r\x1b[K"


class Style(StrEnum):
    """Colours by purpose; the value is the ANSI attribute."""

    ERROR = "31"
    NARRATION = "2"


def printable(text: str) -> str:
    """The text with control characters as visible escapes: one message stays one line and moves no cursor."""
    return _CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match.group()):02x}"


class Terminal:
    """The two streams of this process.

    Args:
        color: False switches colours off even on a terminal (``--no-color``, ``NO_COLOR``).
    """

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None, *, color: bool = True) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self.stdout_is_tty = _is_tty(stdout)
        self.stderr_is_tty = _is_tty(stderr)
        self._color = color and self.stderr_is_tty
        self._status = ""
        self._line_is_open = False

    @property
    def is_shared(self) -> bool:
        """Whether both streams end in a terminal, where lines on one cut into the text of the other."""
        return self.stdout_is_tty and self.stderr_is_tty

    @property
    def text_is_open(self) -> bool:
        """Whether the cursor of a shared terminal stands inside a line of generated text."""
        return self._line_is_open and self.is_shared

    @property
    def columns(self) -> int:
        """How wide the terminal is now."""
        try:
            return os.get_terminal_size(self._stderr.fileno()).columns or 80 if self._stderr else 80
        except (OSError, ValueError):
            return 80

    def disable_color(self) -> None:
        self._color = False

    def text(self, piece: str) -> None:
        """Generated text to standard output, flushed at once.

        A terminal gets control characters in visible form, so that no model moves its cursor; a file or pipe
        gets every character as it is.
        """
        if not piece:
            return
        self.clear_status()
        shown = _CONTROL_IN_TEXT.sub(_escape, piece) if self.stdout_is_tty else piece
        self._write_out(shown)
        self._line_is_open = not piece.endswith("\n")

    def end_text(self) -> None:
        """Let a terminal's cursor leave a line of text that broke off; files and pipes get nothing added."""
        if self._line_is_open and self.stdout_is_tty:
            self.line()

    def line(self, text: str = "") -> None:
        """A line of a result to standard output."""
        self.clear_status()
        self._write_out(text + "\n")
        self._line_is_open = False

    def note(self, text: str = "", style: Style | None = None) -> None:
        """A line to standard error, above the status line; a reader that has gone is no reason to fail."""
        status = self._status
        self.clear_status()
        if self.text_is_open:
            self._write_err("\n")
            self._line_is_open = False
        self._write_err(self._painted(printable(text), style) + "\n")
        if status:
            self.status(status)

    def error(self, lines: list[str]) -> None:
        """Lines that say why the command failed."""
        self.keep_status()
        for line in lines:
            self.note(line, Style.ERROR if line.startswith(("Error:", "[queen-rbee] ❌")) else None)

    def status(self, text: str) -> None:
        """Redraw the line at the cursor; only for terminals."""
        cut = text[: self.columns - 1]
        self._write_err(_CLEAR_LINE + cut)
        self._status = cut

    def keep_status(self) -> None:
        """Leave the status line where it is and go on below it."""
        if self._status:
            self._write_err("\n")
            self._status = ""

    def clear_status(self) -> None:
        if self._status:
            self._write_err(_CLEAR_LINE)
            self._status = ""

    def blank(self) -> None:
        """An empty line on standard error, which also ends a line of text on a shared terminal."""
        self.clear_status()
        self._write_err("\n")
        if self.is_shared:
            self._line_is_open = False

    def _painted(self, text: str, style: Style | None) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and self._color else text

    def _write_out(self, text: str) -> None:
        if self._stdout is None:
            return
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError:
            self._abandon_stdout()
            raise OutputClosed from None
        except (OSError, ValueError) as error:
            self._abandon_stdout()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise KeeperFailure(f"Cannot write to standard output: {reason}", code="INTERNAL_ERROR") from None

    def _abandon_stdout(self) -> None:
        """Point the descriptor at nothing, or the interpreter complains again when it flushes at exit."""
        stdout, self._stdout = self._stdout, None
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            if stdout is not None:
                os.dup2(sink, stdout.fileno())
            os.close(sink)
        except (OSError, ValueError):
            return

    def _write_err(self, text: str) -> None:
        if self._stderr is None:
            return
        try:
            self._stderr.write(text)
            self._stderr.flush()
        except (OSError, ValueError):
            self._stderr = None


def own_terminal(environ: Mapping[str, str]) -> Terminal:
    """The terminal of this process; characters its encoding lacks are replaced, never an exception."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    return Terminal(sys.stdout, sys.stderr, color=not environ.get("NO_COLOR"))


def _is_tty(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
