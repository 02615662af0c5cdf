"""``models``: the catalog of a node."""

from __future__ import annotations

from typing import Any

import click

from rbee_keeper.failures import KeeperFailure
from rbee_keeper.narration import Narrator
from rbee_keeper.parameters import MODEL, NODE_NAME, KeeperGroup, json_option
from rbee_keeper.progress import ProgressDisplay
from rbee_keeper.results import Message, ModelList, PulledModel
from rbee_keeper.session import Session

_node = click.option("--node", type=NODE_NAME, default="localhost", show_default=True, help="The node.")


@click.group(cls=KeeperGroup)
def models() -> None:
    """List, fetch and remove models on a node."""


@models.command("list")
@_node
@json_option
@click.pass_obj
def list_models(session: Session, /, node: str) -> ModelList:
    """List the models in the catalog of a node."""
    session.node = node
    answer = session.queen().get("/v2/models/list", params={"node": node}, timeout_s=120.0)
    return ModelList(answer.get("models", []))


@models.command()
@click.argument("model", type=MODEL, required=False)
@_node
@json_option
@click.pass_obj
def pull(session: Session, /, model: str | None, node: str) -> PulledModel:
    """Fetch MODEL (without it: the embedded default model) and print where it is."""
    session.node = node
    body = {"node": node, **({"model": model} if model else {})}
    return _pull(session, body)


@models.command()
@click.argument("model", type=MODEL)
@_node
@click.pass_obj
def remove(session: Session, /, model: str, node: str) -> Message:
    """Remove MODEL with its file and conversions."""
    session.node = node
    session.queen().post("/v2/models/remove", {"node": node, "model": model}, timeout_s=120.0)
    return Message([f"Model '{model}' removed"])


def _pull(session: Session, body: dict[str, Any]) -> PulledModel:
    from rbee.core.client import TransportFailure

    queen = session.queen()
    progress = ProgressDisplay(session.terminal)
    narrator = Narrator(session.terminal, progress)
    result: PulledModel | None = None
    try:
        with queen.stream("POST", "/v2/models/pull", body=body) as stream:
            for event in stream:
                if event.is_done_marker:
                    break
                result = _take(event.name, event.json(), narrator, progress) or result
    except TransportFailure as failure:
        raise queen.unreachable(failure.reason) from None
    except ValueError:
        raise KeeperFailure("The stream holds an event that is not JSON", code="INTERNAL_ERROR") from None
    finally:
        progress.settle()
    if result is None:
        raise KeeperFailure("SSE stream closed unexpectedly", code="INTERNAL_ERROR")
    return result


def _take(name: str, data: Any, narrator: Narrator, progress: ProgressDisplay) -> PulledModel | None:
    from rbee.core.errors import error_from_fields

    if name == "narration":
        narrator.show(data)
    elif name == "progress":
        progress.show(data)
    elif "error" in data:
        progress.settle()
        raise error_from_fields(data["error"])
    elif data.get("done"):
        return PulledModel(str(data.get("model")), str(data.get("local_path")))
    return None
