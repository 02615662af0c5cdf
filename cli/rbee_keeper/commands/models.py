"""``models``: the catalog of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.narration import Narrator
from rbee_keeper.parameters import MODEL, NODE_NAME, FiniteRange, KeeperGroup, json_option
from rbee_keeper.progress import ProgressDisplay
from rbee_keeper.results import (
    Message,
    ModelDetails,
    ModelList,
    ModelQuality,
    PrunedModels,
    PulledModel,
    VerifiedModels,
)
from rbee_keeper.session import Session

_node = click.option("--node", type=NODE_NAME, default="localhost", show_default=True, help="The node.")


@click.group(cls=KeeperGroup)
def models() -> None:
    """List, fetch, check and remove models on a node."""


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


@models.command()
@click.argument("model", type=MODEL)
@_node
@json_option
@click.pass_obj
def show(session: Session, /, model: str, node: str) -> ModelDetails:
    """Show all that is known of MODEL: digest, revision, sizes, conversions, last use."""
    session.node = node
    answer = session.queen().get("/v2/models/show", params={"node": node, "model": model}, timeout_s=120.0)
    return ModelDetails(answer.get("model", {}))


@models.command()
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--quality",
    is_flag=True,
    help="Also compare what MODEL predicts as converted with float32; takes a few passes over it.",
)
@_node
@json_option
@click.pass_obj
def verify(session: Session, /, model: str | None, quality: bool, node: str) -> VerifiedModels | ModelQuality:
    """Read MODEL, or every model, again: compare digests, check that conversions are complete."""
    if quality and model is None:
        raise click.UsageError("--quality needs MODEL.")
    session.node = node
    verified = _verify(session, model, node)
    if model is None or not quality or verified.exit_code is not ExitCode.OK:
        return verified
    done = _follow(session, "/v2/models/quality", {"node": node, "model": model})
    if "quality" not in done:
        raise KeeperFailure("The stream ended without figures", code="INTERNAL_ERROR")
    return ModelQuality(str(done.get("model")), done["quality"])


@models.command()
@click.option(
    "--unused-for",
    "days",
    type=FiniteRange(min=0, max=36_500),
    metavar="DAYS",
    help="Also models that no worker used for so many days.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed and remove nothing.")
@_node
@json_option
@click.pass_obj
def prune(session: Session, /, days: float | None, dry_run: bool, node: str) -> PrunedModels:
    """Remove partial downloads, conversions that nobody needs and, if asked, unused models."""
    session.node = node
    body = {"node": node, "unused_for_days": days, "dry_run": dry_run}
    answer = session.queen().post("/v2/models/prune", body, timeout_s=120.0)
    return PrunedModels(answer["removed"], answer["bytes_freed"], answer["dry_run"])


def _pull(session: Session, body: dict[str, Any]) -> PulledModel:
    done = _follow(session, "/v2/models/pull", body)
    return PulledModel(str(done.get("model")), str(done.get("local_path")))


def _verify(session: Session, model: str | None, node: str) -> VerifiedModels:
    from rbee.core.errors import RbeeError

    body = {"node": node, **({"model": model} if model else {})}
    verdicts: list[dict[str, Any]] = []
    try:
        _follow(session, "/v2/models/verify", body, verdicts.append)
    except RbeeError as error:
        if error.code != "MODEL_DAMAGED":
            raise
        return VerifiedModels(verdicts, error.fields(), exit_code=ExitCode.FAILED)
    return VerifiedModels(verdicts)


def _follow(
    session: Session,
    path: str,
    body: dict[str, Any],
    on_verdict: Callable[[dict[str, Any]], None] = lambda _verdict: None,
) -> dict[str, Any]:
    """Show narration and progress of a stream; returns its last event.

    Raises:
        the error that ends the stream; KeeperFailure when it breaks off.
    """
    from rbee.core.client import TransportFailure

    queen = session.queen()
    progress = ProgressDisplay(session.terminal)
    narrator = Narrator(session.terminal, progress)
    result: dict[str, Any] | None = None
    try:
        with queen.stream("POST", path, body=body) as stream:
            for event in stream:
                if event.is_done_marker:
                    break
                if event.name == "verdict":
                    on_verdict(event.json())
                else:
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


def _take(name: str, data: Any, narrator: Narrator, progress: ProgressDisplay) -> dict[str, Any] | None:
    from rbee.core.errors import error_from_fields

    if name == "narration":
        narrator.show(data)
    elif name == "progress":
        progress.show(data)
    elif "error" in data:
        progress.settle()
        raise error_from_fields(data["error"])
    elif data.get("done"):
        return dict(data)
    return None
