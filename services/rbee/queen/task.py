"""One task as it was accepted."""

from __future__ import annotations

from dataclasses import dataclass

from rbee.core.schemas import TaskRequest
from rbee.queen.placement import Wanted
from rbee.queen.registry import Node


@dataclass(frozen=True)
class Task:
    """What a client asked for, with everything decided that needs no hive."""

    request_id: str
    node: Node | None
    """None: the queen chooses one."""
    model_ref: str
    request: TaskRequest
    client_version: str | None
    arrived: float
    """On the monotonic clock."""

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.model_ref, self.request.backend, self.request.device)

    @property
    def node_name(self) -> str | None:
        return None if self.node is None else self.node.node_name
