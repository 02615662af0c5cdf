"""``plan``: where a task would go, and what speaks against each of the other nodes."""

from __future__ import annotations

import click

from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.parameters import BACKENDS, MODEL, KeeperCommand, json_option
from rbee_keeper.results import Plan
from rbee_keeper.session import Session

_PATIENCE_S = 120.0
"""A node without a hive is asked through a login and by a program that looks at its devices."""


@click.command(cls=KeeperCommand, epilog="Exit codes: 0 a node fits, 1 none does, 2 wrong usage.")
@click.option("--model", type=MODEL, help="Model reference; the queen's default model without it.")
@click.option("--backend", type=click.Choice(BACKENDS), help="[default: each node's choice]")
@click.option("--device", type=click.IntRange(0), help="Index of the device; needs --backend.")
@json_option
@click.pass_obj
def plan(session: Session, /, model: str | None, backend: str | None, device: int | None) -> Plan:
    """Tell for every node whether a model fits there, in numbers, and which node a task would go to."""
    if device is not None and backend is None:
        raise click.UsageError("--device needs --backend.")
    given = {"model": model, "backend": backend, "device": device}
    body = {name: value for name, value in given.items() if value is not None}
    answer = session.queen().post("/v2/plan", body, timeout_s=_PATIENCE_S)
    node = answer.get("node")
    return Plan(
        str(answer.get("model")),
        node,
        str(answer.get("why")),
        answer.get("nodes", []),
        exit_code=ExitCode.OK if node is not None else ExitCode.FAILED,
    )
