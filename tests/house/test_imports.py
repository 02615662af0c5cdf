"""The dependency rules of ARCHITECTURE.md, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "rbee.core": {"rbee.core"},
    "rbee.web": {"rbee.core", "rbee.web"},
    "rbee.models": {"rbee.core", "rbee.models"},
    "rbee.testing": {
        "rbee.core",
        "rbee.web",
        "rbee.models",
        "rbee.hive",
        "rbee.worker",
        "rbee.queen",
        "rbee.testing",
    },
    "rbee.worker": {"rbee.core", "rbee.web", "rbee.models", "rbee.worker"},
    "rbee.hive": {"rbee.core", "rbee.web", "rbee.models", "rbee.hive"},
    "rbee.queen": {"rbee.core", "rbee.web", "rbee.queen"},
    "rbee_keeper": {"rbee.core", "rbee_keeper"},
}
WEB_LIBRARIES = {"flask", "gunicorn", "gevent", "werkzeug"}
ENVIRONMENT_READERS = {"__main__.py"}


def modules() -> list[Path]:
    return sorted([*(ROOT / "services").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


def package_of(file: Path) -> str:
    parts = file.relative_to(ROOT).parts
    return (
        f"rbee.{parts[2]}"
        if parts[0] == "services" and len(parts) > 3
        else "rbee"
        if parts[0] == "services"
        else "rbee_keeper"
    )


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_may(file: Path) -> None:
    package = package_of(file)
    if package == "rbee":
        return
    for name in imported(file):
        if name == "rbee" or not name.startswith(("rbee.", "rbee_keeper")):
            continue
        target = "rbee_keeper" if name.startswith("rbee_keeper") else ".".join(name.split(".")[:2])
        assert target in ALLOWED[package], f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["rbee.core", "rbee.models", "rbee_keeper"])
def test_the_web_libraries_stay_at_the_web_edge(package: str) -> None:
    for file in modules():
        if package_of(file) == package:
            found = {name.split(".")[0] for name in imported(file)} & WEB_LIBRARIES
            assert not found, f"{file.relative_to(ROOT)} imports {found}"


def test_only_a_main_module_reads_the_environment() -> None:
    offenders = [
        str(file.relative_to(ROOT))
        for file in modules()
        if file.name not in ENVIRONMENT_READERS
        and any(
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "getenv")
            and getattr(node.value, "id", "") == "os"
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
    ]
    assert offenders == []


def test_every_module_says_in_its_docstring_what_it_is_for() -> None:
    silent = [str(f.relative_to(ROOT)) for f in modules() if not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []


def test_no_code_runs_a_shell_or_unpickles() -> None:
    for file in modules():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                raise AssertionError(f"{file.relative_to(ROOT)} passes shell=")
        assert not {"pickle", "marshal", "shelve"} & set(imported(file)), file
