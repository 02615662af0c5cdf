"""``install``: puts the programs where the shell finds them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rbee_keeper.parameters import KeeperCommand
from rbee_keeper.results import Message
from rbee_keeper.session import Session


@click.command(cls=KeeperCommand)
@click.option("--user", "is_system", flag_value=False, default=False, help="Under your home.  [default]")
@click.option("--system", "is_system", flag_value=True, help="For all users of this machine; needs root.")
@click.pass_obj
def install(session: Session, /, is_system: bool) -> Message:
    """Install the programs of this Python environment.

    DESTDIR is put before every target path.
    """
    from rbee_keeper.installation import install_programs, system_targets, user_targets

    environ = session.environ
    targets = system_targets(environ, is_root=os.geteuid() == 0) if is_system else user_targets(environ)
    return Message(install_programs(targets, environ, Path(sys.executable).parent))
