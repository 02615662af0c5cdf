"""Makes the Python environment of a checkout; run by the launcher ``rbee`` with nothing but a bare Python.

It is run by its path, so it may import the standard library only. The environment counts as ready when the
file written last, ``.rbee-checkout``, is there: whatever ends a set-up half-way, the next run begins it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOCK, CHECKOUT_STAMP, SETUP_STAMP, LOG = ".rbee-lock", ".rbee-checkout", ".rbee-setup.cfg", ".rbee-setup.log"
_SHOWN_LOG_LINES = 15
_STEPS = ("Collecting ", "Downloading ", "Building ", "Installing ")


class SetupFailed(Exception):
    """The environment could not be made; the text says why and what to do."""


def main(checkout: Path, venv: Path) -> int:
    """Make ``venv`` ready for ``checkout``; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        is_interrupted_work = (venv / LOCK).exists()
        if not is_interrupted_work:
            _refuse_foreign_folder(checkout, venv)
        with _locked(venv) as lock:
            if not is_ready(checkout, venv):
                _set_up(checkout, venv, lock, may_clear=is_interrupted_work)
    except SetupFailed as failure:
        _tell(f"Error: {failure}")
        return 1
    except OSError as error:
        _tell(f"Error: {error.filename or venv}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        _tell("\nSet-up interrupted; the next run begins it anew.")
        return 130
    return 0


def is_ready(checkout: Path, venv: Path) -> bool:
    """Whether the environment was made for this checkout, at this place, from its present metadata."""
    try:
        is_current = (venv / SETUP_STAMP).read_bytes() == (checkout / "setup.cfg").read_bytes()
    except OSError:
        return False
    return is_current and _made_for(venv) == str(checkout) and os.access(venv / "bin" / "rbee", os.X_OK)


def _refuse_foreign_folder(checkout: Path, venv: Path) -> None:
    """Only what this program made, and the checkout's own ``.venv``, may be changed."""
    if not venv.is_dir() or not any(venv.iterdir()):
        return
    if not (venv / "pyvenv.cfg").exists():
        raise SetupFailed(f"{venv} is not a Python environment; name an empty or a new folder")
    if venv != checkout / ".venv":
        raise SetupFailed(
            f"{venv} has no rbee installed.\n"
            f"Suggestion: {venv}/bin/pip install {checkout}, or name another folder"
        )


@contextlib.contextmanager
def _locked(venv: Path) -> Iterator[int]:
    """One set-up at a time; pip inherits the lock, so that it outlives a killed launcher while pip works."""
    venv.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(venv / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell("Waiting for another set-up of rbee to finish ...")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _set_up(checkout: Path, venv: Path, lock: int, *, may_clear: bool) -> None:
    began = time.monotonic()
    python = venv / "bin" / "python"
    made_for = _made_for(venv)
    if (may_clear and made_for is None) or made_for not in (None, str(checkout)) or not _works(python):
        _clear(venv)
    (venv / CHECKOUT_STAMP).unlink(missing_ok=True)
    if not python.exists():
        _tell(f"Setting up rbee in {venv} (only once; packages come from the package index) ...")
        _make_environment(venv)
    else:
        _tell(f"Updating rbee in {venv} ...")
    metadata = (checkout / "setup.cfg").read_bytes()
    _install(checkout, venv, lock)
    (venv / SETUP_STAMP).write_bytes(metadata)
    (venv / CHECKOUT_STAMP).write_text(f"{checkout}\n")
    _tell(f"Ready after {time.monotonic() - began:.0f} s.")


def _made_for(venv: Path) -> str | None:
    """The checkout of the last complete set-up; None when there was none, or one has been cut short since."""
    try:
        return (venv / CHECKOUT_STAMP).read_text().rstrip("\n")
    except OSError:
        return None


def _works(python: Path) -> bool:
    """Whether it runs, is new enough and has pip."""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _clear(venv: Path) -> None:
    """Empty the folder but for the lock, which we hold."""
    for entry in venv.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _make_environment(venv: Path) -> None:
    """``python -m venv``.

    Raises:
        SetupFailed: this Python cannot, as on Debian without its venv package.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made = subprocess.run([sys.executable, "-m", "venv", venv], capture_output=True, text=True)
    if made.returncode != 0:
        _clear(venv)
        reason = (made.stdout + made.stderr).strip().splitlines()
        why = reason[0] if reason else "no reason given"
        raise SetupFailed(
            f"Python {version} cannot make a virtual environment: {why}\n"
            f"Suggestion: Debian, Ubuntu: apt-get install python3-venv (or python{version}-venv)"
        )


def _install(checkout: Path, venv: Path, lock: int) -> None:
    """``pip install -e``, its output in a log, its steps on standard error.

    Raises:
        SetupFailed: pip failed; the end of its output is shown.
    """
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--no-input", "--no-user", "--editable", str(checkout)]
    lines: list[str] = []
    with (venv / LOG).open("w", encoding="utf-8") as log:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[lock],
        )
        try:
            for line in pip.stdout or ():
                log.write(line)
                lines.append(line.rstrip())
                _show_step(line.strip())
        except BaseException:
            pip.terminate()
            raise
        finally:
            pip.wait()
            _show_step("")
    if pip.returncode != 0 or not os.access(venv / "bin" / "rbee", os.X_OK):
        told = "\n".join(f"  {line}" for line in lines[-_SHOWN_LOG_LINES:])
        raise SetupFailed(f"rbee could not be installed. pip said:\n{told}\n  Log: {venv / LOG}")


def _show_step(line: str) -> None:
    """What pip does now, on a terminal in place; elsewhere nothing."""
    if not sys.stderr.isatty():
        return
    if not line or line.startswith(_STEPS):
        width = shutil.get_terminal_size().columns - 3
        sys.stderr.write(f"\r\x1b[K{'  ' if line else ''}{line[:width]}")
        sys.stderr.flush()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
