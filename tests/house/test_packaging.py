"""The wheel carries every package, and its programs run from any folder."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (file,) = out.glob("*.whl")
    return file


def test_every_package_folder_is_in_the_metadata() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(file.parent.relative_to(ROOT / root).parts)
        for root in ("services", "cli")
        for file in (ROOT / root).rglob("__init__.py")
    }
    assert found - {"rbee.testing"} == listed - {"rbee.testing"}


def test_the_wheel_has_every_module_of_the_programs(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for root in ("services", "cli"):
        for file in (ROOT / root).rglob("*.py"):
            name = str(file.relative_to(ROOT / root))
            if not name.startswith("rbee/testing/"):
                assert name in packed


@pytest.mark.parametrize("program", ["rbee-keeper", "rbee", "queen-rbee", "rbee-hive", "llm-worker-rbee"])
def test_an_installed_wheel_gives_the_programs_from_any_folder(
    wheel: Path, program: str, tmp_path: Path
) -> None:
    target = tmp_path / "installed"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    shown = subprocess.run(
        [sys.executable, str(target / "bin" / program), "--version"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[-1] == "0.1.0"
    assert shown.stdout.split()[0] in (program, "rbee-keeper")
