"""``node``: take a node out of service, let it run empty, put it back."""

from __future__ import annotations

import click

from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.parameters import NODE_NAME, FiniteRange, KeeperGroup, json_option
from rbee_keeper.results import FleetState, Message, NodeDrained
from rbee_keeper.session import Session

_MARGIN_S = 30.0

_name = click.argument("name", type=NODE_NAME, metavar="NODE")
_reason = click.option("--reason", help="Shown to whoever asks for the node meanwhile.")


@click.group(cls=KeeperGroup)
def node() -> None:
    """Take nodes out of service and put them back."""


@node.command()
@_name
@_reason
@click.pass_obj
def cordon(session: Session, /, name: str, reason: str | None) -> Message:
    """Send no new tasks to NODE; those under way go on."""
    session.node = name
    session.queen().post(f"/v2/nodes/{name}/cordon", _body(reason), timeout_s=_MARGIN_S)
    return Message([f"[queen-rbee] Node '{name}' takes no new tasks"])


@node.command()
@_name
@_reason
@click.option(
    "--timeout", type=FiniteRange(0, 86400), default=300.0, show_default=True, help="Seconds to wait."
)
@json_option
@click.pass_obj
def drain(session: Session, /, name: str, reason: str | None, timeout: float) -> NodeDrained:
    """Cordon NODE and wait until nothing runs there; exit code 1 when something still does."""
    session.node = name
    body = {**_body(reason), "timeout_seconds": timeout}
    state = session.queen().post(f"/v2/nodes/{name}/drain", body, timeout_s=timeout + _MARGIN_S)
    code = ExitCode.OK if state.get("drained") else ExitCode.FAILED
    return NodeDrained(state, exit_code=code)


@node.command()
@_name
@click.pass_obj
def uncordon(session: Session, /, name: str) -> Message:
    """Let NODE take tasks again."""
    session.node = name
    session.queen().post(f"/v2/nodes/{name}/uncordon", {}, timeout_s=_MARGIN_S)
    return Message([f"[queen-rbee] Node '{name}' takes tasks again"])


@node.command()
@click.argument("name", type=NODE_NAME, metavar="[NODE]", required=False)
@json_option
@click.pass_obj
def status(session: Session, /, name: str | None) -> FleetState:
    """Show which nodes take tasks, what runs there, and whether a roll-out is under way."""
    answer = session.queen().get("/v2/nodes", timeout_s=60.0)
    nodes = [entry for entry in answer.get("nodes", []) if name in (None, entry.get("node"))]
    if name is not None and not nodes:
        from rbee.core.errors import NodeNotFound

        raise NodeNotFound(name)
    return FleetState(nodes, answer.get("rollout"))


def _body(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"reason": reason}
