"""A listener that remembers what a transfer told it."""

from __future__ import annotations


class RecordingListener:
    """``TransferListener`` for tests."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.progress: list[tuple[int, int | None]] = []
        self.narration: list[tuple[str, str]] = []

    def begin(self, done: int) -> None:
        self.begun.append(done)

    def received(self, done: int, total: int | None) -> None:
        self.progress.append((done, total))

    def narrate(self, action: str, human: str) -> None:
        self.narration.append((action, human))

    @property
    def retries(self) -> list[str]:
        """Texts of the retry narration."""
        return [human for action, human in self.narration if action == "retry"]
