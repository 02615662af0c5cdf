"""The queen's identity on disk."""

from __future__ import annotations

import stat
import subprocess
import sys
import uuid
from pathlib import Path

from rbee.queen.identity import load_identity


def test_the_identity_is_a_uuid_that_survives_a_restart(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "queen.id")
    assert str(uuid.UUID(first)) == first
    assert load_identity(tmp_path / "queen.id") == first


def test_nobody_else_may_read_the_identity(tmp_path: Path) -> None:
    load_identity(tmp_path / "queen.id")
    assert stat.S_IMODE((tmp_path / "queen.id").stat().st_mode) == 0o600


def test_a_damaged_identity_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "queen.id").write_text("half-writ")
    identity = load_identity(tmp_path / "queen.id")
    assert (tmp_path / "queen.id").read_text().strip() == identity
    assert [p.name for p in tmp_path.iterdir()] == ["queen.id"]


def test_queens_that_start_together_agree_on_one_identity(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom rbee.queen.identity import load_identity\n"
        "print(load_identity(pathlib.Path(sys.argv[1])))"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "queen.id")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    told = {start.communicate(timeout=20)[0].strip() for start in starts}
    assert len(told) == 1
