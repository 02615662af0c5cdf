"""Downloads under way and lately finished: shared by reference, followed by many, found by id for 600 s."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from rbee.core.errors import DownloadNotFound
from rbee.core.references import ModelRef
from rbee.hive.local_models import LocalModel
from rbee.hive.shared_work import OnEvent, SharedWork, WireEvent

CACHED = "cached"
"""The id in answers for a model that needs no download."""
KEPT_S = 600.0

Fetch = Callable[[OnEvent], LocalModel]


class Download(SharedWork[LocalModel]):
    """One transfer of one model."""

    def __init__(self, download_id: str, ref: ModelRef) -> None:
        super().__init__()
        self.id = download_id
        self.ref = ref
        self.finished_at: float | None = None

    @property
    def local_path(self) -> Path | None:
        """Where the model is; None while the transfer runs and after it failed."""
        return self.result.path if self.result is not None else None

    def events(self) -> Iterator[WireEvent]:
        """Progress and narration so far and to come, until the transfer is over."""
        return self.progress.follow()


def download_of_present(ref: ModelRef, local: LocalModel) -> Download:
    """What stands for a download when the model is here already."""
    download = Download(CACHED, ref)
    download.complete(local)
    return download


class Downloads:
    """All downloads of this hive."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_id: dict[str, Download] = {}
        self._running: dict[ModelRef, Download] = {}

    @property
    def running(self) -> list[Download]:
        return list(self._running.values())

    def get(self, download_id: str) -> Download:
        """A download that runs or ended within the last ten minutes.

        Raises:
            DownloadNotFound: there is none of that id.
        """
        self._forget_old()
        if download_id not in self._by_id:
            raise DownloadNotFound(download_id)
        return self._by_id[download_id]

    def share(self, ref: ModelRef, fetch: Fetch) -> Download:
        """The download of that reference that runs already, or a new one."""
        self._forget_old()
        if ref in self._running:
            return self._running[ref]
        download = Download(f"download-{uuid.uuid4()}", ref)
        self._by_id[download.id] = self._running[ref] = download

        def over() -> None:
            download.finished_at = self._clock()
            del self._running[ref]

        download.start(fetch, over)
        return download

    def _forget_old(self) -> None:
        since = self._clock() - KEPT_S
        for download in list(self._by_id.values()):
            if download.finished_at is not None and download.finished_at <= since:
                del self._by_id[download.id]
