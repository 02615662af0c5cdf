"""What the provisioner tells its hive: JSON objects, one a line, on its standard output."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from rbee.models.storage import MIB

ACTOR = "model-provisioner"
NARRATION_LIMIT = 100
_MIN_INTERVAL_S = 0.1125  # nine in a second, so that with an unconditional last one there are never eleven
_SPEED_WINDOW_S = 3.0


class ReaderGone(SystemExit):
    """The hive no longer reads: there is nobody left to work for."""


class EventWriter:
    """Writes events to ``stream``: progress at most ten times a second, its first and last value always.

    Within one chain of attempts the reported bytes never go back, also where a server makes a download start
    over.

    Args:
        later: calls a function after so many seconds, from any thread; shows figures that were held back when
            nothing follows them, as before a stall. Without it they wait for the next event.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._later = later
        self._lock = threading.RLock()
        self._is_scheduled = False
        self._last_written = float("-inf")
        self._pending: dict[str, Any] | None = None
        self._high = 0
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, done: int) -> None:
        self._high = done
        self._samples = deque([(self._clock(), done)])

    def received(self, done: int, total: int | None) -> None:
        now = self._clock()
        self._high = max(self._high, done)
        speed = self._speed(now, done)
        self._progress(
            {
                "stage": "downloading",
                "bytes_downloaded": self._high,
                "bytes_total": total,
                "speed_mbps": speed,
            },
            is_last=done == total,
        )

    def converting(self, tensors_done: int, tensors_total: int) -> None:
        """Progress of a conversion, counted in tensors."""
        self._progress(
            {"stage": "converting", "tensors_done": tensors_done, "tensors_total": tensors_total},
            is_last=tensors_done == tensors_total,
        )

    def calibrating(self, layers_done: int, layers_total: int) -> None:
        """Progress of the calibration before a conversion, counted in layers."""
        self._progress(
            {"stage": "calibrating", "layers_done": layers_done, "layers_total": layers_total},
            is_last=layers_done == layers_total,
        )

    def measuring(self, layers_done: int, layers_total: int) -> None:
        """Progress of a comparison with float32, counted in layers."""
        self._progress(
            {"stage": "measuring", "layers_done": layers_done, "layers_total": layers_total},
            is_last=layers_done == layers_total,
        )

    def measured(self, report: Mapping[str, Any]) -> None:
        """The figures of a comparison with float32."""
        self._flush()
        self._write({"stage": "measured", **report})

    def verifying(self, model_ref: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes, of all models to verify, have been read."""
        self._progress(
            {
                "stage": "verifying",
                "model_ref": model_ref,
                "bytes_verified": done,
                "bytes_total": total,
            },
            is_last=done == total,
        )

    def verified(self, verdict: Mapping[str, Any]) -> None:
        """What was found out about one model."""
        self._flush()
        self._write({"stage": "verified", **verdict})

    def narrate(self, action: str, human: str) -> None:
        if action != "retry" and len(human) > NARRATION_LIMIT:
            human = human[: NARRATION_LIMIT - 1] + "…"
        self._flush()
        self._write({"narration": {"actor": ACTOR, "action": action, "human": human}})

    def complete(self, local_path: Path) -> None:
        """The last event of a run that succeeded."""
        self._flush()
        self._write({"stage": "complete", "local_path": str(local_path)})

    def error(self, fields: Mapping[str, Any]) -> None:
        """The last event of a run that failed; ``fields`` is the content of an error envelope."""
        self._flush()
        self._write({"stage": "error", "error": dict(fields)})

    def _speed(self, now: float, done: int) -> float:
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[0][0] < now - _SPEED_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        if now <= then or done <= before:
            return 0.0
        return max(0.01, round((done - before) / MIB / (now - then), 2))

    def _progress(self, event: dict[str, Any], *, is_last: bool) -> None:
        with self._lock:
            self._pending = event
            if is_last or self._clock() - self._last_written >= _MIN_INTERVAL_S:
                self._flush()
            elif self._later is not None and not self._is_scheduled:
                self._is_scheduled = True
                self._later(_MIN_INTERVAL_S, self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._is_scheduled = False
            if self._pending is not None:
                event, self._pending = self._pending, None
                self._last_written = self._clock()
                self._write(event)

    def _write(self, event: Mapping[str, Any]) -> None:
        try:
            with self._lock:
                self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
                self._stream.flush()
        except (OSError, ValueError) as error:
            # Not an OSError for the code in between, which takes those for trouble with network or disk.
            raise ReaderGone(1) from error
