"""Builds the packages of rbee and of all it needs, for one Python and one machine type, as a single archive.

With them goes uv, which installs them on the node. Runs on the control machine, with the Python whose pip is
to be used; needs nothing but the standard library and pip. What was built once is used again. Prints
``{"archive", "digest", "version"}`` as JSON.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

DISTRIBUTION = "rbee"
SOURCES = ("services", "cli", "playbooks", "roles", "inventory", "setup.cfg", "pyproject.toml")
INSTALLER = "uv>=0.9,<1"
FORMAT = 2
"""Of the archive: what lies in the cache in another format is built anew."""
KEPT_ARCHIVES = 6
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
GLIBC_STEPS = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35, 39)
PLATFORM_NAMES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


class BuildFailed(Exception):
    """The packages cannot be had; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkout", type=Path, help="sources of rbee; without it the installed package is used"
    )
    parser.add_argument(
        "--version", default="", help="another version than this machine's own, from the index"
    )
    parser.add_argument("--extra", action="append", default=[], help="an extra of the package, e.g. cuda")
    parser.add_argument("--python", required=True, help="the node's Python, e.g. 3.11")
    parser.add_argument("--machine", required=True, help="the node's machine type, e.g. x86_64")
    parser.add_argument("--system", default="Linux")
    parser.add_argument("--glibc", default="", help="the node's C library, e.g. 2.36")
    parser.add_argument("--out", type=Path, required=True, help="folder for the archives")
    options = parser.parse_args()
    try:
        print(json.dumps(provide(options)))
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def provide(options: argparse.Namespace) -> dict[str, str]:
    """The archive, built now if it is not there yet.

    Raises:
        BuildFailed: pip could not get or build something.
    """
    source = source_of(options.checkout, options.version)
    target = [options.python, MACHINES.get(options.machine, options.machine), options.system, options.glibc]
    parts = [FORMAT, source, target, sorted(options.extra)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = options.out
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "lock"):
        stamp = folder / f"{key}.json"
        if not stamp.exists():
            build(options, folder, key)
        found: dict[str, str] = json.loads(stamp.read_text())
        os.utime(stamp)
        drop_old(folder)
    return found


def source_of(checkout: Path | None, version: str) -> list[str]:
    """What identifies the software: where it comes from and a digest of its content."""
    own = own_version(checkout)
    if version and version != own:
        return ["index", version]
    if checkout:
        return ["checkout", own, digest_of(checkout)]
    record = importlib.metadata.distribution(DISTRIBUTION).read_text("RECORD") or ""
    return ["installed", own, hashlib.sha256(record.encode()).hexdigest()]


def own_version(checkout: Path | None) -> str:
    if checkout is None:
        return importlib.metadata.version(DISTRIBUTION)
    text = (checkout / "services" / "rbee" / "__init__.py").read_text()
    match = re.search(r'__version__ = "([^"]+)"', text)
    if match is None:
        raise BuildFailed(f"{checkout} names no version of rbee")
    return match[1]


def digest_of(checkout: Path) -> str:
    """A digest of all files that go into the package."""
    digest = hashlib.sha256()
    for name in SOURCES:
        path = checkout / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts and not file.match("*.egg-info/*"):
                digest.update(str(file.relative_to(checkout)).encode() + b"\0")
                digest.update(file.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """One build at a time: nodes of a fleet ask for the same archive at once."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(options: argparse.Namespace, folder: Path, key: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rbee-wheels-", dir=folder) as name:
        work = Path(name)
        wheels = work / "wheels"
        wheels.mkdir()
        own = own_wheel(options, work)
        wanted = f"{DISTRIBUTION}=={options.version}" if own is None else str(own)
        extras = f"[{','.join(sorted(options.extra))}]" if options.extra else ""
        if own is not None and extras:
            wanted = f"{DISTRIBUTION}{extras} @ {own.as_uri()}"
        elif extras:
            wanted = f"{DISTRIBUTION}{extras}=={options.version}"
        collect(options, wanted, wheels)
        if own is not None:
            shutil.copy(own, wheels)
        installer = fetch_installer(options, work)
        version = built_version(wheels)
        archive, fresh = folder / f"{key}.tar", work / "archive.tar"
        with tarfile.open(fresh, "w") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                tar.add(wheel, wheel.name)
            tar.add(installer, installer.name)
        fresh.replace(archive)
        stamp = work / "stamp"
        stamp.write_text(json.dumps({"archive": str(archive), "digest": key, "version": version}))
        stamp.replace(folder / f"{key}.json")


def own_wheel(options: argparse.Namespace, work: Path) -> Path | None:
    """rbee itself as a wheel; None when another version than this machine's is asked for."""
    if options.version and options.version != own_version(options.checkout):
        return None
    if options.checkout is None:
        return pack_installed(work)
    # A copy, because setuptools writes into the folder it builds from.
    copy = work / "source"
    copy.mkdir()
    for name in (*SOURCES, "README.md", "LICENSE"):
        path = options.checkout / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif path.exists():
            shutil.copy(path, copy / name)
    pip("wheel", "--no-deps", "--wheel-dir", str(work / "own"), str(copy))
    (wheel,) = (work / "own").glob("*.whl")
    return wheel


def pack_installed(work: Path) -> Path:
    """The wheel that this installation came from, put together again from its files."""
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    wheel = work / f"{DISTRIBUTION}-{distribution.version}-py3-none-any.whl"
    info = f"{DISTRIBUTION}-{distribution.version}.dist-info/"
    local = {f"{info}{name}" for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")}
    rows = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in distribution.files or []:
            name = file.as_posix()
            if name.startswith("../") or name.endswith(".pyc") or name in local:
                continue
            path = Path(str(file.locate()))
            content = path.read_bytes()
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = path.stat().st_mode << 16, zipfile.ZIP_DEFLATED
            packed.writestr(entry, content)
            checksum = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={checksum},{len(content)}")
        packed.writestr(f"{info}RECORD", "\n".join([*rows, f"{info}RECORD,,", ""]))
    if len(rows) < 10:
        raise BuildFailed("rbee is not installed as a package here; name its checkout")
    return wheel


def collect(options: argparse.Namespace, wanted: str, wheels: Path) -> None:
    """Everything ``wanted`` needs, as wheels for the node."""
    if is_like_here(options):
        pip("wheel", "--wheel-dir", str(wheels), wanted)
    else:
        download(options, wanted, wheels)


def fetch_installer(options: argparse.Namespace, work: Path) -> Path:
    """uv's program for the node."""
    download(options, INSTALLER, work / "installer")
    (wheel,) = (work / "installer").glob("uv-*.whl")
    program = work / "uv"
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".data/scripts/uv"))
        program.write_bytes(packed.read(name))
    program.chmod(0o755)
    return program


def download(options: argparse.Namespace, wanted: str, folder: Path) -> None:
    """``wanted`` and what it needs as built for the node."""
    version = options.python.replace(".", "")
    arguments = ["download", "--dest", str(folder), "--only-binary=:all:", "--implementation=cp"]
    arguments += [f"--python-version={options.python}", f"--abi=cp{version}", "--abi=abi3", "--abi=none"]
    for name in platforms(options):
        arguments.append(f"--platform={name}")
    pip(*arguments, wanted)


def is_like_here(options: argparse.Namespace) -> bool:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    machine = MACHINES.get(platform.machine(), platform.machine())
    wanted = MACHINES.get(options.machine, options.machine)
    libc = platform.libc_ver()[1]
    is_old_enough = not options.glibc or not libc or _numbers(libc) <= _numbers(options.glibc)
    return (here, machine, platform.system()) == (options.python, wanted, options.system) and is_old_enough


def platforms(options: argparse.Namespace) -> list[str]:
    """pip's names of the platforms whose packages run on the node."""
    if options.system == "Darwin":
        machine = "arm64" if options.machine in ("arm64", "aarch64") else "x86_64"
        return [f"macosx_{major}_0_{kind}" for major in (11, 12, 13, 14) for kind in (machine, "universal2")]
    machine = MACHINES.get(options.machine, options.machine)
    minor = _numbers(options.glibc or "2.28")[1]
    steps = [step for step in GLIBC_STEPS if step <= minor]
    old = [f"{PLATFORM_NAMES[step]}_{machine}" for step in steps if step in PLATFORM_NAMES]
    return [f"manylinux_2_{step}_{machine}" for step in reversed(steps)] + old


def pip(*arguments: str) -> None:
    """Run pip.

    Raises:
        BuildFailed: it failed; the end of what it said.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        *arguments,
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildFailed("\n".join((done.stdout + done.stderr).strip().splitlines()[-15:]))


def built_version(wheels: Path) -> str:
    (wheel,) = wheels.glob(f"{DISTRIBUTION}-*.whl")
    return wheel.name.split("-")[1]


def drop_old(folder: Path) -> None:
    """Keep the archives used last; each has the size of an installation's packages."""
    stamps = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for stamp in stamps[KEPT_ARCHIVES:]:
        stamp.with_suffix(".tar").unlink(missing_ok=True)
        stamp.unlink()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


if __name__ == "__main__":
    sys.exit(main())
