"""The command line as a whole: commands found by name and loaded when used, one way out for every outcome."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rbee import __version__
from rbee.core.errors import RbeeError
from rbee_keeper.error_lines import failure_lines
from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.failures import KeeperFailure, OutputClosed
from rbee_keeper.parameters import global_options
from rbee_keeper.results import Result
from rbee_keeper.session import Session
from rbee_keeper.terminal import own_terminal

PROGRAMS = ("rbee-keeper", "rbee")

_COMMANDS = {
    "infer": "rbee_keeper.commands.infer:infer",
    "plan": "rbee_keeper.commands.plan:plan",
    "models": "rbee_keeper.commands.models:models",
    "workers": "rbee_keeper.commands.workers:workers",
    "node": "rbee_keeper.commands.node:node",
    "setup": "rbee_keeper.commands.setup:setup",
    "queen": "rbee_keeper.commands.queen:queen",
    "logs": "rbee_keeper.commands.logs:logs",
    "install": "rbee_keeper.commands.install:install",
    "completion": "rbee_keeper.commands.completion:completion",
}


class LazyGroup(click.Group):
    """The program: its commands are imported by name, and what they need only when they run."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order in which a new user needs them."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, or None."""
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name for one that was mistyped."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["--help", "-h"]})
@global_options
@click.version_option(__version__, prog_name="rbee-keeper", message="%(prog)s %(version)s")
def program() -> None:
    """Run language models on the machines you own.

    rbee infer --prompt "Write a short story about a bee." answers on this machine, with nothing to set up.
    """


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command line; returns the exit code. Whatever happens, nothing it started is left behind."""
    session = Session(environ, own_terminal(environ))
    session.interrupts.install()
    try:
        code = _execute(session, argv)
    except KeyboardInterrupt:
        code = int(ExitCode.INTERRUPTED)
    finally:
        session.close()
    if session.interrupts.happened:
        session.interrupts.die_as_signalled()
        return int(ExitCode.INTERRUPTED)
    return code


def _execute(session: Session, argv: Sequence[str]) -> int:
    name = Path(argv[0]).name if argv else ""
    try:
        outcome = program.main(
            list(argv[1:]),
            prog_name=name if name in PROGRAMS else PROGRAMS[0],
            obj=session,
            standalone_mode=False,
        )
        return _shown(session, outcome)
    except Exception as error:
        return _told(session, error)


def _shown(session: Session, outcome: Any) -> int:
    """Print what a command returned; click itself returns a number after ``--help`` and ``--version``."""
    if isinstance(outcome, Result):
        from rbee_keeper.rendering import show

        show(outcome, session.terminal, as_json=session.as_json)
        return int(outcome.exit_code)
    return outcome if isinstance(outcome, int) else int(ExitCode.OK)


def _told(session: Session, error: Exception) -> int:
    terminal = session.terminal
    if isinstance(error, click.Abort):
        terminal.note("Canceled.")
        return int(ExitCode.INTERRUPTED)
    if isinstance(error, click.ClickException):
        error.show()
        return int(error.exit_code)
    if isinstance(error, OutputClosed):
        return int(ExitCode.FAILED)
    if isinstance(error, (RbeeError, KeeperFailure)):
        terminal.error(failure_lines(error, session.error_context()))
    else:
        place = _write_down(session.log_file, error)
        terminal.error([f"Error: internal error ({type(error).__name__})", f"  Log: {place}"])
    return int(ExitCode.FAILED)


def _write_down(file: Path, error: Exception) -> str:
    """Append the traceback of an unexpected failure to the keeper's log; where it went."""
    import traceback

    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as log:
            log.write("".join(traceback.format_exception(error)) + "\n")
    except OSError as failure:
        return f"could not be written ({failure.strerror})"
    return str(file)
