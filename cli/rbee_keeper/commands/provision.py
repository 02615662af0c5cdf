"""``setup install|upgrade|rollback|uninstall|check|history``: the software on nodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rbee_keeper.parameters import NODE_NAME, KeeperCommand, json_option
from rbee_keeper.provisioning.operations import CHECK, INSTALL, ROLLBACK, UNINSTALL, UPGRADE, Operation
from rbee_keeper.results import RunList, Streamed
from rbee_keeper.session import Session

F = TypeVar("F", bound=Callable[..., Any])
_VERSION = re.compile(r"\d+(\.\d+)*[a-z0-9.+]*")

_nodes = click.option(
    "--node", "nodes", type=NODE_NAME, multiple=True, help="A node; may be given several times."
)
_all = click.option("--all", "is_all", is_flag=True, help="All registered nodes.")
_serial = click.option("--serial", type=click.IntRange(1, 1000), help="Nodes at the same time.")
_check = click.option("--check", is_flag=True, help="Only tell what would change.")
_diff = click.option("--diff", is_flag=True, help="Show each change.")


_drain = click.option(
    "--drain-timeout",
    type=click.IntRange(0, 86400),
    help="Seconds open streams of a node may take to end; when they do not, the roll-out stops there.",
)


def _version_text(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value and not _VERSION.fullmatch(value):
        raise click.BadParameter(f"'{value}' is not a version like 0.1.0")
    return value


_version = click.option(
    "--version", "version", default="", callback=_version_text, help="This version instead."
)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def _run(
    session: Session, operation: Operation, nodes: tuple[str, ...], is_all: bool, **flags: Any
) -> Streamed:
    """Carry the operation out on the nodes that were named, or on all."""
    if bool(nodes) == is_all:
        raise click.UsageError("Name the nodes with --node, or take all of them with --all.")
    from rbee_keeper.provisioning.rollout import Wish, roll_out

    return roll_out(session, Wish(operation, nodes, **flags))


@click.command(cls=KeeperCommand)
@_options(_nodes, _all, _serial, _check, _diff, _version)
@click.pass_obj
def install(session: Session, /, **flags: Any) -> Streamed:
    """Install rbee on nodes; doing it again changes nothing."""
    return _run(session, INSTALL, **flags)


@click.command(cls=KeeperCommand)
@_options(_nodes, _all, _serial, _check, _diff, _version, _drain)
@click.pass_obj
def upgrade(session: Session, /, **flags: Any) -> Streamed:
    """Upgrade nodes one after the other; one that fails is put back and stops the rest."""
    return _run(session, UPGRADE, **flags)


@click.command(cls=KeeperCommand)
@_options(_nodes, _all, _serial, _check, _diff, _version, _drain)
@click.pass_obj
def rollback(session: Session, /, **flags: Any) -> Streamed:
    """Put nodes back on the release they had before."""
    return _run(session, ROLLBACK, **flags)


@click.command(cls=KeeperCommand)
@_options(_nodes, _all, _check, _diff)
@click.option("--purge", is_flag=True, help="Remove the models as well.")
@click.pass_obj
def uninstall(session: Session, /, **flags: Any) -> Streamed:
    """Remove rbee from nodes; models stay."""
    return _run(session, UNINSTALL, **flags)


@click.command(cls=KeeperCommand)
@_options(_nodes, _all, _version)
@click.pass_obj
def check(session: Session, /, **flags: Any) -> Streamed:
    """Look whether nodes are as they should be; changes nothing."""
    return _run(session, CHECK, **flags)


@click.command(cls=KeeperCommand)
@json_option
@click.pass_obj
def history(session: Session, /) -> RunList:
    """Show who installed, upgraded or removed what where, the newest first."""
    from rbee_keeper.provisioning.runs import read_runs

    return RunList(read_runs(session.settings.home / "runs"))


COMMANDS = (install, upgrade, rollback, uninstall, check, history)
