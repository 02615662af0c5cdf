"""Asking pip, in a child process: where a wheel is, and, where that is not enough, to download it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rbee.core.errors import DownloadFailed
from rbee.core.processes import die_with_parent
from rbee.models.transfers import TransferInterrupted

# Wheels only: an sdist would have to be built, which runs code of the package.
_COMMON = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--no-cache-dir",
    "--disable-pip-version-check",
    "--retries=0",
)
_FIRST_WITH_DRY_RUN_WITHOUT_DOWNLOAD = (25, 3)
_FIRST_WITH_RAW_PROGRESS = (24, 1)
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNFETCHED = re.compile(r"Could not fetch URL (\S+): (.*?)(?: - skipping)?$")
_NO_MATCH = "No matching distribution found"


class NoSuchPackage(LookupError):
    """The configured sources do not have this version of the package as a wheel."""


class PackageRefused(PermissionError):
    """A configured source demands other credentials."""


@dataclass(frozen=True)
class Wheel:
    """Where pip would take the wheel from; the digest is the index's, where it states one."""

    url: str
    sha256: str | None


def locate(requirement: str) -> Wheel | None:
    """Ask pip which wheel it would install; None when this pip can only tell by downloading it.

    All of pip's configuration holds: indexes, find-links, constraints, proxies, credentials.

    Raises:
        NoSuchPackage, PackageRefused, TransferInterrupted: as ``_raise_for``.
        DownloadFailed: there is no pip.
    """
    if _pip_version() < _FIRST_WITH_DRY_RUN_WITHOUT_DOWNLOAD:
        return None
    with tempfile.TemporaryDirectory(prefix="rbee-pip-") as folder:
        report = Path(folder) / "report.json"
        # fast-deps reads the metadata out of the remote wheel by ranges, for indexes that do not serve it.
        arguments = ["install", "--dry-run", "--ignore-installed", f"--report={report}", "-vv"]
        run = _run([*arguments, "--use-feature=fast-deps", *_COMMON, "--", requirement])
        if run.returncode != 0:
            try:
                _raise_for(run)
            except DownloadFailed:  # not about this package: an option this pip does not know, for instance
                return None
        info = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
    sha256 = info.get("archive_info", {}).get("hashes", {}).get("sha256")
    return Wheel(str(info["url"]), sha256)


def pip_download(requirement: str, folder: Path, on_bytes: Callable[[int, int | None], None]) -> Path:
    """Let pip download the wheel into the empty ``folder``; ``on_bytes`` gets its progress, done and total.

    Raises:
        NoSuchPackage, PackageRefused, TransferInterrupted, DownloadFailed: as ``_raise_for``.
    """
    arguments = ["download", "-vv", f"--dest={folder}", *_COMMON]
    if _pip_version() >= _FIRST_WITH_RAW_PROGRESS:
        arguments.append("--progress-bar=raw")

    def on_line(line: str) -> None:
        if (match := _PROGRESS.match(line)) and int(match[1]) > 0:
            on_bytes(int(match[1]), int(match[2]) or None)

    run = _run([*arguments, "--", requirement], on_line)
    if run.returncode != 0:
        _raise_for(run)
    return next(folder.glob("*.whl"))


@dataclass(frozen=True)
class _Run:
    returncode: int
    output: str


def _run(arguments: list[str], on_line: Callable[[str], None] | None = None) -> _Run:
    process = subprocess.Popen(
        [sys.executable, "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in process.stdout:
            lines.append(line)
            if on_line is not None:
                on_line(line)
        return _Run(process.wait(), "".join(lines))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _raise_for(run: _Run) -> None:
    """Turn a failed run into an exception.

    pip says "no matching distribution" also when an index could not be reached or refused it, so the reasons
    it logged for every page it could not read decide.
    """
    reasons = [match[2] for line in run.output.splitlines() if (match := _UNFETCHED.search(line))]
    if any("401 Client Error" in reason or "403 Client Error" in reason for reason in reasons):
        raise PackageRefused
    unreachable = [reason for reason in reasons if "404 Client Error" not in reason]
    if unreachable:
        raise TransferInterrupted(_short(unreachable[0]))
    if _NO_MATCH in run.output:
        raise NoSuchPackage
    errors = [line for line in run.output.splitlines() if line.startswith("ERROR: ")]
    text = _short(errors[-1].removeprefix("ERROR: ")) if errors else f"pip ended with {run.returncode}"
    if any(word in run.output for word in ("Connection", "Timeout", "timed out", "IncompleteRead")):
        raise TransferInterrupted(text)
    raise DownloadFailed(1, text)


def _short(reason: str) -> str:
    # The part that a person wants is the innermost: "… [Errno 111] Connection refused'))".
    if match := re.search(r"\[Errno -?\d+\] ([A-Za-z ,]+)", reason):
        return match[1].strip()
    if "timed out" in reason:
        return "Connection timed out"
    return re.sub(r"\S+://\S+", "the index", reason)[:160]


def _pip_version() -> tuple[int, ...]:
    try:
        text = metadata.version("pip")
    except metadata.PackageNotFoundError:
        hint = f"{sys.executable} -m ensurepip"
        raise DownloadFailed(1, f"pip is missing from this environment; install it: {hint}") from None
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
