"""A fleet of many hives in memory, for what a queen decides by what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rbee.core.client import TransportFailure
from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Timing
from rbee.queen.fleet import Fleet
from rbee.queen.placement import Wanted
from rbee.queen.ports import Capabilities, HiveHealth, WorkerRecord
from rbee.queen.registry import Node, Nodes, builtin_node
from rbee.queen.scheduling import Scheduler
from rbee.testing.fake_nodes import FakeNodes

MODEL = "file:/m.gguf"
WANTED = Wanted(MODEL)
MB = 2**20


@dataclass
class Hive:
    """One hive, and what was asked of it."""

    is_up: bool = True
    worker: WorkerState | None = None
    ram_mb: int = 8000
    has_model: bool = True
    is_readable: bool = True
    asked: list[str] = field(default_factory=list)

    def _answer(self, what: str, answer: Any) -> Any:
        self.asked.append(what)
        if not self.is_up:
            raise TransportFailure("refused", "Connection refused")
        if not self.is_readable and what == "workers":
            raise ValueError("not an http URL")
        return answer

    def health(self, _timeout_s: float) -> HiveHealth:
        return self._answer("health", HiveHealth("alive", "1", "operator", 1))

    def workers(self, _timeout_s: float) -> list[WorkerRecord]:
        state = self.worker
        records = [WorkerRecord("w", "http://h:1", MODEL, "cpu", 0, state, 1, 1)] if state else []
        return self._answer("workers", records)

    def models(self) -> list[dict[str, Any]]:
        return self._answer("models", [{"model_ref": MODEL, "size_bytes": MB}] if self.has_model else [])

    def capabilities(self) -> Capabilities:
        return self._answer("capabilities", Capabilities(["cpu"], {"cpu": 1}, self.ram_mb, {}, 100_000))

    def detect(self) -> Capabilities:
        self.asked.append("detect")
        return Capabilities(["cpu"], {"cpu": 1}, self.ram_mb, {}, 100_000)


class Crowd:
    """A queen's fleet of many hives, by node; localhost takes no tasks."""

    def __init__(self, count: int) -> None:
        self.hives = {f"n{number}": Hive() for number in range(count)}
        self.nodes = Nodes(FakeNodes, builtin_node(1))
        for name in self.hives:
            self.nodes.add(Node(name, "h", "u", "/p"))
        self.nodes.cordons.set("localhost", "not meant")
        peers = SimpleNamespace(hive=lambda node: self.hives[node.node_name])
        launcher = SimpleNamespace(detect=lambda node: self.hives[node.node_name].detect())
        self.fleet = Fleet(self.nodes, peers, lambda _node: launcher, "q", "1", Timing())  # type: ignore[arg-type, return-value]
        self.scheduler = Scheduler(self.fleet)

    def place(self, wanted: Wanted = WANTED) -> str:
        return self.scheduler.place(wanted)[0].node_name

    def forget_what_was_asked(self) -> None:
        for hive in self.hives.values():
            hive.asked.clear()

    def asked(self) -> list[str]:
        """The nodes that were asked since."""
        return [name for name, hive in self.hives.items() if hive.asked]
