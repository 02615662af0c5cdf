"""A source of models in memory, held to the same contract as the real ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rbee.core.errors import ModelAccessDenied, ModelNotFound
from rbee.core.references import ModelRef
from rbee.models.providers import FetchedFile, RemoteModel
from rbee.models.transfers import Transfer, TransferInterrupted


class FakeProvider:
    """Has the given models; interrupts as many transfers as told."""

    def __init__(self, models: dict[str, bytes], *, states_digest: bool = True) -> None:
        self.models = models
        self.states_digest = states_digest
        self.refused: set[str] = set()
        self.interruptions = 0
        self.local_path: Path | None = None
        self.resolved = 0
        self.fetched = 0

    def resolve(self, ref: ModelRef) -> RemoteModel:
        self.resolved += 1
        self._interrupt()
        if str(ref) in self.refused:
            raise ModelAccessDenied(str(ref))
        content = self.models.get(str(ref))
        if content is None:
            raise ModelNotFound(str(ref))
        digest = hashlib.sha256(content).hexdigest() if self.states_digest else None
        return RemoteModel("model.gguf", len(content), digest, "r1", self.local_path)

    def fetch(self, ref: ModelRef, remote: RemoteModel, target: Path, transfer: Transfer) -> FetchedFile:
        content = self.models[str(ref)]
        transfer.listener.begin(0)

        def move() -> None:
            self._interrupt()
            self.fetched += 1
            target.write_bytes(content)
            transfer.listener.received(len(content), remote.size_bytes)

        transfer.attempt(move)
        return FetchedFile(target, len(content), hashlib.sha256(content).hexdigest())

    def _interrupt(self) -> None:
        if self.interruptions > 0:
            self.interruptions -= 1
            raise TransferInterrupted("Connection reset by peer")
