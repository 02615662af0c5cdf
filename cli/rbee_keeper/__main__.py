"""Entry point of the programs ``rbee-keeper`` and ``rbee``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from rbee_keeper.cli import run

        code = run(sys.argv, os.environ)
    except KeyboardInterrupt:
        # Only reached while modules are still being imported; later interrupts are handled by the session.
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
