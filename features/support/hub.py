"""The local hub of a scenario: real files over the hub's protocol, with the faults that a scenario orders."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

from support.file_sending import Request
from support.hub_server import Hub


class LocalHub(Hub):
    """Repositories below a folder of the scenario."""

    def offer(self, repo: str, name: str) -> Path:
        """The place of a file to be served; what is written there is what the hub has."""
        place = self.root / repo / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    @property
    def transfers(self) -> list[Request]:
        """Requests for the content of models, in the order in which they came."""
        return self.recorder.transfers(".gguf")

    @property
    def pauses_s(self) -> list[float]:
        """Seconds between the end of each such request and the next."""
        return [later.at - earlier.ended for earlier, later in pairwise(self.transfers)]

    def close(self) -> None:
        self.stop()


def place_file(source: Path, target: Path) -> None:
    """The same file under another name, as a link where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
