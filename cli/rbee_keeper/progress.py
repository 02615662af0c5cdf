"""Progress bars: in place on a terminal, elsewhere as lines, at most ten per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rbee_keeper.terminal import Terminal

CELLS = 20
MIN_INTERVAL_S = 0.1
MIB = 1048576


def bar(done: float, total: float, cells: int = CELLS) -> str:
    """``[████████------------] 40%`` for the share of ``total`` that is ``done``."""
    percent = max(0, min(100, int(done * 100 // total))) if total > 0 else 0
    filled = cells * percent // 100
    return f"[{'█' * filled}{'-' * (cells - filled)}] {percent}%"


def megabytes(count: float) -> str:
    """Bytes as MB; 1 MB is 1 048 576 bytes."""
    return f"{count / MIB:.1f} MB"


def progress_line(event: Mapping[str, Any], cells: int = CELLS) -> str | None:
    """The line for one progress event, or None for a stage this version does not know."""
    stage = event.get("stage")
    if stage == "downloading":
        return _download_line(event, cells)
    if stage == "verifying":
        return _verify_line(event, cells)
    if stage == "calibrating":
        return _counted_line("Calibrating model...", event, "layers", "done", cells)
    if stage == "measuring":
        return _counted_line("Measuring quality...", event, "layers", "done", cells)
    if stage == "converting":
        return _counted_line("Converting model...", event, "tensors", "done", cells)
    if stage == "loading_to_vram":
        return _counted_line("Loading model to VRAM...", event, "layers", "loaded", cells)
    return None


def _download_line(event: Mapping[str, Any], cells: int) -> str:
    done, total = _number(event, "bytes_downloaded"), _number(event, "bytes_total")
    amount = megabytes(done)
    if total > 0:
        amount = f"{bar(done, total, cells)} ({amount} / {megabytes(total)})"
    return f"Downloading model... {amount} @ {_number(event, 'speed_mbps'):.1f} MB/s"


def _verify_line(event: Mapping[str, Any], cells: int) -> str:
    done, total = _number(event, "bytes_verified"), _number(event, "bytes_total")
    return f"Verifying models... {bar(done, total, cells)} ({megabytes(done)} / {megabytes(total)})"


def _counted_line(label: str, event: Mapping[str, Any], unit: str, verb: str, cells: int) -> str:
    done, total = int(_number(event, f"{unit}_{verb}")), int(_number(event, f"{unit}_total"))
    return f"{label} {bar(done, total, cells)} ({done}/{total} {unit})"


def fitting_line(event: Mapping[str, Any], columns: int, left_s: float | None = None) -> str:
    """The line with the time left, its bar shortened as far as a narrow terminal asks for."""
    line = ""
    for cells in range(CELLS, 0, -5):
        line = (progress_line(event, cells) or "") + time_left(event, left_s)
        if len(line) < columns:
            break
    return line


def time_left(event: Mapping[str, Any], left_s: float | None = None) -> str:
    """`` ETA m:ss``, empty where it cannot be told: by a download's own speed, else ``left_s``."""
    if event.get("stage") == "downloading":
        speed = _number(event, "speed_mbps") * MIB
        left = _number(event, "bytes_total") - _number(event, "bytes_downloaded")
        left_s = left / speed if speed > 0 else None
    if left_s is None or left_s <= 0:
        return ""
    minutes, seconds = divmod(round(left_s), 60)
    return f" ETA {minutes}:{seconds:02d}"


_COUNTED = {
    "converting": ("tensors_done", "tensors_total"),
    "loading_to_vram": ("layers_loaded", "layers_total"),
    "verifying": ("bytes_verified", "bytes_total"),
}


class _Pace:
    """How long a stage without a speed of its own will still take, if it goes on as so far."""

    def __init__(self, event: Mapping[str, Any], now: float) -> None:
        self._began = now
        self._first, _ = _counts(event)

    def left_s(self, event: Mapping[str, Any], now: float) -> float | None:
        done, total = _counts(event)
        if done <= self._first or now <= self._began:
            return None
        return (now - self._began) * (total - done) / (done - self._first)


def _counts(event: Mapping[str, Any]) -> tuple[float, float]:
    done, total = _COUNTED.get(str(event.get("stage")), ("", ""))
    return _number(event, done), _number(event, total)


def _number(event: Mapping[str, Any], key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


class ProgressDisplay:
    """Shows the progress events of one command.

    Elsewhere than on a terminal the first and the last event of every stage are always printed; which one
    was the last is known when something else follows, so call ``settle`` before printing anything else.
    """

    def __init__(
        self, terminal: Terminal, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._terminal = terminal
        self._quiet = quiet
        self._clock = clock
        self._stage: Any = None
        self._printed_at = float("-inf")
        self._waiting: Mapping[str, Any] | None = None
        self._was_loading = False
        self._pace = _Pace({}, 0.0)

    def show(self, event: Mapping[str, Any]) -> None:
        """Take in one progress event."""
        if progress_line(event) is None or self._quiet:
            return
        is_first = event.get("stage") != self._stage
        if is_first:
            self.settle()
            self._stage = event.get("stage")
            self._pace = _Pace(event, self._clock())
            self._was_loading = self._was_loading or self._stage == "loading_to_vram"
        now = self._clock()
        if not is_first and now - self._printed_at < MIN_INTERVAL_S:
            self._waiting = event
            return
        self._printed_at, self._waiting = now, None
        self._print(event)

    def settle(self) -> None:
        """Print the last event of the stage if it was held back, and leave the bar where it stands."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._print(waiting)
        if self._terminal.stderr_is_tty:
            self._terminal.keep_status()

    def _print(self, event: Mapping[str, Any]) -> None:
        if self._terminal.stderr_is_tty:
            left_s = self._pace.left_s(event, self._clock())
            self._terminal.status(fitting_line(event, self._terminal.columns, left_s))
        else:
            self._terminal.note(progress_line(event) or "")

    def model_is_ready(self) -> None:
        """Close the loading bar, if there was one, with ``Model ready!``."""
        self.settle()
        if self._was_loading:
            self._was_loading = False
            self._terminal.note("Model ready!")
        self._stage = None
