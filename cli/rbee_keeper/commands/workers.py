"""``workers``: what runs on the fleet."""

from __future__ import annotations

import click

from rbee_keeper.parameters import NODE_NAME, WORKER_ID, KeeperGroup, json_option
from rbee_keeper.results import Message, WorkerHealth, WorkerList
from rbee_keeper.session import Session


@click.group(cls=KeeperGroup)
def workers() -> None:
    """Look at the workers of the fleet and end them."""


@workers.command("list")
@json_option
@click.pass_obj
def list_workers(session: Session, /) -> WorkerList:
    """List the workers of all nodes, as their hives report them now."""
    answer = session.queen().get("/v2/workers/list")
    return WorkerList(answer.get("workers", []), answer.get("unreachable", []))


@workers.command()
@click.option("--node", type=NODE_NAME, required=True, help="The node to ask.")
@json_option
@click.pass_obj
def health(session: Session, /, node: str) -> WorkerHealth:
    """Probe each worker of a node."""
    session.node = node
    answer = session.queen().get("/v2/workers/health", params={"node": node}, timeout_s=60.0)
    return WorkerHealth(str(answer.get("status")), answer.get("workers", []))


@workers.command()
@click.option("--id", "worker_id", type=WORKER_ID, required=True, help="The worker to end.")
@click.pass_obj
def shutdown(session: Session, /, worker_id: str) -> Message:
    """End one worker in order: what it generates is finished first."""
    session.queen().post("/v2/workers/shutdown", {"worker_id": worker_id}, timeout_s=60.0)
    return Message([f"Shutdown command sent to worker '{worker_id}'"])
