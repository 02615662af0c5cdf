"""Running the provisioner as the hive does: a child process, read line by line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee.models.storage import NOTE_SUFFIX

from .daemons import environment, wait_until

QUICK_POLICY = ("--attempts", "3", "--delays-ms", "1", "--stall-timeout-s", "5")


@dataclass(frozen=True)
class Place:
    """A models directory, a catalog and an environment of their own."""

    root: Path

    @property
    def models_dir(self) -> Path:
        return self.root / "models"

    @property
    def catalog_db(self) -> Path:
        return self.root / "models.db"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """No settings of the developer's hub client or pip, and caches below the root."""
        values = environment(self.root / "home")
        values = {name: value for name, value in values.items() if not name.startswith("PIP_")}
        return {
            **values,
            "HF_HOME": str(self.root / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            **(extra or {}),
        }

    def fetch_args(self, ref: str, policy: Sequence[str] = QUICK_POLICY) -> list[str]:
        return ["fetch", "--ref", ref, *self._where(), *policy]

    def convert_args(self, ref: str, path: Path, compute_type: str) -> list[str]:
        return ["convert", "--ref", ref, *self._where(), "--path", str(path), "--compute-type", compute_type]

    def _where(self) -> list[str]:
        return ["--models-dir", str(self.models_dir), "--catalog-db", str(self.catalog_db)]

    def files(self) -> list[str]:
        """Every file below the models directory except locks and notes, relative to it."""
        found = (path for path in self.models_dir.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.models_dir)) for path in found)
        return sorted(
            name for name in names if not name.startswith(".locks/") and not name.endswith(NOTE_SUFFIX)
        )


class Provisioner:
    """A running provisioner whose lines are collected as they come; a context manager that ends it."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rbee.models.provisioner", *args],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.stderr = ""
        self._readers = [
            threading.Thread(target=self._read_lines),
            threading.Thread(target=self._read_errors),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.lines)]

    @property
    def final(self) -> dict[str, Any]:
        """The last event, which must be the only one of its kind."""
        ends = [event for event in self.events if event.get("stage") in ("complete", "error")]
        assert len(ends) == 1, (self.events, self.stderr)
        assert self.events[-1] == ends[0]
        return ends[0]

    @property
    def progress(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("stage") in ("downloading", "converting")]

    @property
    def narration(self) -> list[str]:
        return [event["narration"]["human"] for event in self.events if "narration" in event]

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit status; everything it wrote is there afterwards."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self._close()

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait_for(self, text: str) -> None:
        """Until a line contains ``text``."""
        wait_until(lambda: any(text in line for line in list(self.lines)), what=text)

    def __enter__(self) -> Provisioner:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def run_provisioner(args: Sequence[str], env: Mapping[str, str]) -> Provisioner:
    """Run it to its end and check that status and last line agree."""
    with Provisioner(args, env) as child:
        status = child.wait()
    assert status == (0 if child.final["stage"] == "complete" else 1), child.stderr
    return child
