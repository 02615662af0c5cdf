"""What commands return; ``rendering`` turns each into text or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rbee_keeper.exit_codes import ExitCode

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The outcome of a command that got to its end."""

    exit_code: ExitCode = field(default=ExitCode.OK, kw_only=True)


@dataclass(frozen=True)
class Message(Result):
    """Lines that say what was done."""

    lines: Sequence[str]


@dataclass(frozen=True)
class NodeList(Result):
    """Registered nodes, the built-in one first."""

    nodes: Sequence[Record]


@dataclass(frozen=True)
class NodeDetails(Result):
    """One registered node with all its fields."""

    node: Record


@dataclass(frozen=True)
class FleetState(Result):
    """Which nodes take tasks, and the roll-out under way."""

    nodes: Sequence[Record]
    rollout: Record | None


@dataclass(frozen=True)
class NodeDrained(Result):
    """What still ran on a node when the wait for its end was over."""

    state: Record


@dataclass(frozen=True)
class WorkerList(Result):
    """Workers of all nodes, and the nodes that did not answer."""

    workers: Sequence[Record]
    unreachable: Sequence[str]


@dataclass(frozen=True)
class WorkerHealth(Result):
    """Workers of one node as just probed."""

    status: str
    workers: Sequence[Record]


@dataclass(frozen=True)
class ModelList(Result):
    """The catalog of one node."""

    models: Sequence[Record]


@dataclass(frozen=True)
class PulledModel(Result):
    """A model that is present on its node now."""

    model: str
    local_path: str


@dataclass(frozen=True)
class ModelQuality(Result):
    """How far a model as converted on its node is from float32."""

    model: str
    quality: Record


@dataclass(frozen=True)
class Plan(Result):
    """Where a task would go: the node, or None, why, and a verdict for every node."""

    model: str
    node: str | None
    why: str
    nodes: Sequence[Record]


@dataclass(frozen=True)
class ModelDetails(Result):
    """One model of a node with all that is known of it."""

    model: Record


@dataclass(frozen=True)
class VerifiedModels(Result):
    """The verdict on each model; ``error`` is an error object when one is damaged."""

    models: Sequence[Record]
    error: Record | None = None


@dataclass(frozen=True)
class PrunedModels(Result):
    """What was removed from a node, or would be."""

    removed: Sequence[Record]
    bytes_freed: int
    dry_run: bool


@dataclass(frozen=True)
class QueenStatus(Result):
    """Whether a queen serves at the URL in use; ``pid`` only of one started by ``queen start``."""

    url: str
    running: bool
    version: str | None
    pid: int | None
    reason: str | None = None


@dataclass(frozen=True)
class Inference(Result):
    """One inference, complete or not; ``error`` is an error object or None."""

    request_id: str | None
    node: str | None
    worker_id: str | None
    model: str | None
    text: str
    total_tokens: int
    duration_ms: int | None
    stop_reason: str | None
    error: Record | None = None


@dataclass(frozen=True)
class RunList(Result):
    """Recorded playbook runs, the newest first."""

    runs: Sequence[Record]


@dataclass(frozen=True)
class Streamed(Result):
    """A command that has printed everything while it ran."""
