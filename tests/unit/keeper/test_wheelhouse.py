"""The archive of packages for nodes: chosen by what it is made of and for, built once, and bounded."""

import argparse
import json
import os
import runpy
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rbee_keeper.provisioning.content import content_folder

WHEELHOUSE = runpy.run_path(str(content_folder() / "roles" / "rbee_base" / "files" / "wheelhouse.py"))


def options(out: Path, **changes: Any) -> argparse.Namespace:
    values = {"checkout": None, "version": "9.9.9", "extra": [], "python": "3.11", "machine": "x86_64"}
    return argparse.Namespace(**{**values, "system": "Linux", "glibc": "2.36", "out": out, **changes})


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records what would be built, and leaves an archive of it."""
    keys: list[str] = []

    def build(_options: argparse.Namespace, folder: Path, key: str) -> None:
        keys.append(key)
        (folder / f"{key}.tar").write_bytes(b"packages")
        stamp = {"archive": str(folder / f"{key}.tar"), "digest": key, "version": "9.9.9"}
        (folder / f"{key}.json").write_text(json.dumps(stamp))

    monkeypatch.setitem(WHEELHOUSE["provide"].__globals__, "build", build)
    return keys


def test_what_was_built_once_is_used_again(tmp_path: Path, built: list[str]) -> None:
    first = WHEELHOUSE["provide"](options(tmp_path))
    assert WHEELHOUSE["provide"](options(tmp_path)) == first
    assert len(built) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"python": "3.12"},
        {"machine": "aarch64"},
        {"glibc": "2.28"},
        {"extra": ["cuda"]},
        {"version": "9.9.8"},
    ],
)
def test_another_node_gets_another_archive(tmp_path: Path, built: list[str], change: dict[str, Any]) -> None:
    WHEELHOUSE["provide"](options(tmp_path))
    WHEELHOUSE["provide"](options(tmp_path, **change))
    assert len(set(built)) == 2


def test_two_names_of_one_machine_type_share_an_archive(tmp_path: Path, built: list[str]) -> None:
    WHEELHOUSE["provide"](options(tmp_path, machine="aarch64"))
    WHEELHOUSE["provide"](options(tmp_path, machine="arm64"))
    assert len(built) == 1


def test_only_the_archives_used_last_are_kept(tmp_path: Path, built: list[str]) -> None:
    kept = WHEELHOUSE["KEPT_ARCHIVES"]
    for number in range(kept):
        WHEELHOUSE["provide"](options(tmp_path, version=f"9.9.{number}"))
        os.utime(tmp_path / f"{built[-1]}.json", (number, number))
    WHEELHOUSE["provide"](options(tmp_path, version="9.8.0"))
    assert {file.stem for file in tmp_path.glob("*.tar")} == set(built[1:])
    assert len(list(tmp_path.glob("*.json"))) == kept


def test_a_changed_source_gets_another_digest(tmp_path: Path) -> None:
    package = tmp_path / "services" / "rbee"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9.9"\n')
    before = WHEELHOUSE["source_of"](tmp_path, "")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_text("compiled")
    assert WHEELHOUSE["source_of"](tmp_path, "") == before
    (package / "more.py").write_text("")
    assert WHEELHOUSE["source_of"](tmp_path, "") != before
    assert WHEELHOUSE["source_of"](tmp_path, "9.9.8") == ["index", "9.9.8"]


def test_an_archive_of_another_format_is_not_used(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    WHEELHOUSE["provide"](options(tmp_path))
    monkeypatch.setitem(WHEELHOUSE["provide"].__globals__, "FORMAT", WHEELHOUSE["FORMAT"] + 1)
    WHEELHOUSE["provide"](options(tmp_path))
    assert len(set(built)) == 2


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"machine": "aarch64", "glibc": "2.28"},
        {"system": "Darwin", "machine": "arm64", "glibc": ""},
    ],
)
def test_the_installer_is_the_nodes_and_can_be_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: dict[str, str]
) -> None:
    asked: list[str] = []

    def pip(*arguments: str) -> None:
        asked.extend(arguments)
        folder = Path(arguments[arguments.index("--dest") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "uv-0.9.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("uv/__init__.py", "")
            wheel.writestr("uv-0.9.0.data/scripts/uv", b"\x7fELF program")

    monkeypatch.setitem(WHEELHOUSE["download"].__globals__, "pip", pip)
    wanted = options(tmp_path, **node)
    program = WHEELHOUSE["fetch_installer"](wanted, tmp_path)
    assert program.read_bytes() == b"\x7fELF program"
    assert os.access(program, os.X_OK)
    assert asked[-1] == WHEELHOUSE["INSTALLER"]
    assert {f"--platform={name}" for name in WHEELHOUSE["platforms"](wanted)} <= set(asked)


def test_packages_for_an_older_system_are_not_newer_than_its_c_library(tmp_path: Path) -> None:
    names = WHEELHOUSE["platforms"](options(tmp_path, machine="arm64", glibc="2.28"))
    assert names[0] == "manylinux_2_28_aarch64"
    assert "manylinux2014_aarch64" in names
    assert not [name for name in names if "2_31" in name or "x86_64" in name]


def test_packages_for_a_mac_are_those_of_a_mac(tmp_path: Path) -> None:
    names = WHEELHOUSE["platforms"](options(tmp_path, system="Darwin", machine="arm64"))
    assert "macosx_11_0_arm64" in names
    assert not [name for name in names if "linux" in name]
