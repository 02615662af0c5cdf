"""How programs end as processes: with the code they return, and with everything told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(body: str, *, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """A process whose program is ``def main()`` with this body."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    program = (
        "import atexit, gc, logging, os, sys\nfrom rbee.core.program import run_program\n"
        f"def main():\n{indented}\nrun_program(main)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "services"), "PATH": "/usr/bin:/bin"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_process_ends_with_the_code_that_was_returned(code: int) -> None:
    assert run(f"return {code}").returncode == code


def test_what_was_written_arrives() -> None:
    ended = run("print('an answer')\nsys.stderr.write('a note')\nreturn 0")
    assert (ended.stdout, ended.stderr) == ("an answer\n", "a note")


def test_what_was_logged_arrives(tmp_path: Path) -> None:
    file = tmp_path / "log"
    body = (
        "from logging.handlers import MemoryHandler\n"
        f"target = logging.FileHandler({str(file)!r})\n"
        "logging.getLogger().addHandler(MemoryHandler(1000, target=target))\n"
        "logging.warning('an event')\nreturn 0"
    )
    assert run(body).returncode == 0
    assert file.read_text() == "an event\n"


def test_garbage_is_looked_for_seldom() -> None:
    ended = run("print(gc.isenabled(), gc.get_threshold()[0])\nreturn 0")
    assert ended.stdout == "True 10000\n"


def test_nothing_is_taken_apart_at_the_end() -> None:
    assert run("atexit.register(print, 'taken apart')\nreturn 0").stdout == ""


def test_a_reader_that_has_gone_is_not_complained_about() -> None:
    ended = run("os.close(1)\nprint('to nobody')\nreturn 3")
    assert (ended.returncode, ended.stderr) == (3, "")


def test_a_program_that_leaves_by_itself_leaves_as_it_says() -> None:
    assert run("sys.exit(2)").returncode == 2


def test_an_error_is_shown() -> None:
    ended = run("raise RuntimeError('broken')")
    assert ended.returncode == 1
    assert "RuntimeError: broken" in ended.stderr
