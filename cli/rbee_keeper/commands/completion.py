"""``completion``: prints the script with which a shell completes the keeper's commands and flags."""

from __future__ import annotations

import click

from rbee_keeper.parameters import KeeperCommand
from rbee_keeper.results import Message


@click.command(cls=KeeperCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> Message:
    """Print the completion script of a shell.

    For bash, put this into ~/.bashrc: eval "$(rbee-keeper completion bash)"
    """
    from click.shell_completion import get_completion_class

    from rbee_keeper.cli import PROGRAMS

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}.")
    program = ctx.find_root().command
    scripts = []
    for name in PROGRAMS:
        variable = f"_{name}_COMPLETE".replace("-", "_").upper()
        scripts += kind(program, {}, name, variable).source().splitlines()
    return Message(scripts)
