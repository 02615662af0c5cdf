"""The wheel carries every package, and its programs run from any folder."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTENT = ("playbooks", "roles", "inventory")


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
            shutil.copy(ROOT / name, target)
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
    content = {f"rbee_keeper.content.{name}" for name in CONTENT}
    assert found - {"rbee.testing"} == listed - {"rbee.testing"} - content
    assert content <= listed


def test_the_wheel_has_every_module_of_the_programs(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for root in ("services", "cli"):
        for file in (ROOT / root).rglob("*.py"):
            name = str(file.relative_to(ROOT / root))
            if not name.startswith("rbee/testing/"):
                assert name in packed


def test_the_wheel_has_every_playbook_role_and_inventory(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder in CONTENT:
        files = [f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        assert len(files) > 2
        lacking = [str(f) for f in files if f"rbee_keeper/content/{f.relative_to(ROOT)}" not in packed]
        assert lacking == []


def test_an_installed_wheel_finds_its_playbooks_and_can_be_packed_again(wheel: Path, tmp_path: Path) -> None:
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
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    script = (
        "import pathlib, runpy, sys\n"
        "from rbee_keeper.provisioning.content import content_folder, registry_inventory\n"
        "print(content_folder())\n"
        "assert registry_inventory().GROUP == 'rbee_nodes'\n"
        "builder = runpy.run_path(str(content_folder() / 'roles/rbee_base/files/wheelhouse.py'))\n"
        "print(builder['pack_installed'](pathlib.Path(sys.argv[1])))\n"
    )
    again = tmp_path / "again"
    again.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", script, str(again)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    folder, packed = map(Path, ran.stdout.split())
    assert folder == target / "rbee_keeper" / "content"
    assert contents(packed) == contents(wheel)
    copy = tmp_path / "copy"
    subprocess.run([*install[:-1], str(copy), str(packed)], check=True, capture_output=True, timeout=120)
    assert (copy / "rbee_keeper" / "content" / "playbooks" / "install.yml").is_file()


def contents(wheel: Path) -> dict[str, bytes]:
    """What a wheel holds, but for its list of files."""
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist() if not name.endswith("/RECORD")}


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
