"""The launcher `rbee` in a checkout that installs in seconds and without a network."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.daemons import ROOT, wait_until

BACKEND = '''
"""A build backend that needs nothing: one module, one program, and a trace of its runs."""
import pathlib, time, zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    here = pathlib.Path(__file__).parent
    with (here / "runs").open("a") as runs:
        runs.write("run\\n")
    if (here / "fails").exists():
        raise SystemExit("the build broke")
    while (here / "hangs").exists():
        time.sleep(0.02)
    name = "rbee-0.1.0-py3-none-any.whl"
    info = "rbee-0.1.0.dist-info"
    program = "import sys\\ndef main():\\n print(sys.argv[1:], sys.stdin.read() if '-' in sys.argv else '')"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("launched.py", program)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: rbee\\nVersion: 0.1.0\\n")
        tags = "Root-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\n" + tags)
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nrbee = launched:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
'''


class Checkout:
    """A checkout with the real launcher and a project that is quick to install."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launcher = folder / "rbee"
        bootstrap = folder / "cli" / "rbee_keeper" / "bootstrap.py"
        bootstrap.parent.mkdir(parents=True)
        shutil.copy(ROOT / "rbee", self.launcher)
        shutil.copy(ROOT / "cli" / "rbee_keeper" / "bootstrap.py", bootstrap)
        (folder / "backend.py").write_text(BACKEND)
        (folder / "setup.cfg").write_text("[metadata]\n")
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "PIP_NO_INDEX": "1",
        }

    @property
    def installs(self) -> int:
        runs = self.folder / "runs"
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    def run(
        self, *args: str, launcher: Path | None = None, stdin: str = "", extra: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [launcher or self.launcher, *args],
            env={**self.environ, **(extra or {})},
            cwd="/",
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.launcher, "started"],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def test_the_first_run_sets_up_and_later_runs_only_start_the_program(
    checkout: Checkout, tmp_path: Path
) -> None:
    first = checkout.run("a b", "-", stdin="the prompt")
    assert (first.returncode, first.stdout) == (0, "['a b', '-'] the prompt\n"), first.stderr
    assert "Setting up rbee" in first.stderr
    again = checkout.run("x")
    assert (again.returncode, again.stdout, again.stderr) == (0, "['x'] \n", "")
    link = tmp_path / "link"
    link.symlink_to(checkout.launcher)
    assert checkout.run("y", launcher=link).stdout == "['y'] \n"
    assert checkout.installs == 1

    (checkout.folder / "setup.cfg").write_text("[metadata]\n# a new dependency\n")
    changed = checkout.run("z")
    assert (changed.stdout, checkout.installs) == ("['z'] \n", 2)
    assert "Updating rbee" in changed.stderr

    (checkout.folder / "setup.cfg").write_text("[metadata]\n# a broken one\n")
    (checkout.folder / "fails").touch()
    failed = checkout.run("z")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Error: rbee could not be installed. pip said:" in failed.stderr
    assert "the build broke" in failed.stderr


def test_a_killed_set_up_is_begun_anew_once_for_all_who_wait(checkout: Checkout) -> None:
    (checkout.folder / "hangs").touch()
    launcher = checkout.start()
    wait_until(lambda: checkout.installs == 1, 60, "the installation under way")
    (set_up,) = psutil.Process(launcher.pid).children()
    below = set_up.children(recursive=True)
    for process in (launcher, set_up):
        process.send_signal(signal.SIGKILL)
    launcher.wait(10)
    assert not (checkout.folder / ".venv" / ".rbee-checkout").exists()
    waiting = [checkout.start() for _ in range(2)]
    (checkout.folder / "hangs").unlink()
    assert [process.wait(90) for process in waiting] == [0, 0]
    psutil.wait_procs(below, timeout=10)
    assert checkout.installs == 2
    assert checkout.run("ok").stdout == "['ok'] \n"


def test_an_environment_named_by_the_user_is_used_as_it_is(checkout: Checkout, tmp_path: Path) -> None:
    programs = tmp_path / "mine" / "bin"
    programs.mkdir(parents=True)
    for name in ("rbee", "python"):
        (programs / name).write_text('#!/bin/sh\necho mine "$@"\n')
        (programs / name).chmod(0o755)
    run = checkout.run("x", extra={"RBEE_VENV": str(tmp_path / "mine")})
    assert (run.returncode, run.stdout, run.stderr) == (0, "mine x\n", "")
    assert checkout.installs == 0


@pytest.mark.parametrize("content", ["notes.txt", "pyvenv.cfg"])
def test_a_folder_that_is_not_ours_is_left_alone(checkout: Checkout, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / content).write_text("")
    run = checkout.run("x", extra={"RBEE_VENV": str(folder)})
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(f"Error: {folder} ")
    assert os.listdir(folder) == [content]


@pytest.mark.parametrize(
    "body", ["#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' || exit 1\n", None]
)
def test_without_a_recent_python_the_message_says_what_to_install(
    checkout: Checkout, tmp_path: Path, body: str | None
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if body is not None:
        (folder / "python3").write_text(body)
        (folder / "python3").chmod(0o755)
    run = checkout.run("x", extra={"PATH": str(folder)})
    assert (run.returncode, run.stdout) == (1, "")
    found = "Python 3.9.2" if body else "no python3 in PATH"
    assert run.stderr.startswith(f"Error: rbee needs Python 3.11 or newer; found: {found}\nSuggestion: ")
