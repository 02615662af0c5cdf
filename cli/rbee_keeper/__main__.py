"""Entry point of the programs ``rbee-keeper`` and ``rbee``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from rbee.core.program import run_program

        run_program(_run)
    except KeyboardInterrupt:
        # Only reached while modules are still being imported; later interrupts are handled by the session.
        sys.exit(130)


def _run() -> int:
    from rbee_keeper.cli import run

    return run(sys.argv, os.environ)


if __name__ == "__main__":
    main()
