"""What the documents promise is what the code has: errors, settings, routes, dependencies."""

import configparser
import re
from pathlib import Path
from typing import Any

import pytest

from rbee.core.errors import error_table
from rbee.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DERIVED = {"home", "source"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("code", sorted(error_table()))
def test_every_error_code_is_documented_with_its_status(code: str) -> None:
    status = error_table()[code].http_status
    assert re.search(rf"^\| `{code}` \| {status} \|", read("docs/errors.md"), re.M), f"{code} {status}"


def test_no_error_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", read("docs/errors.md"), re.M))
    assert documented == set(error_table())


def sections() -> list[tuple[str, str, Any]]:
    found = []
    for section, field in Settings.model_fields.items():
        if section not in DERIVED:
            for key, entry in field.annotation.model_fields.items():  # type: ignore[union-attr]
                found.append((section, key, entry.get_default(call_default_factory=False)))
    return found


@pytest.mark.parametrize(("section", "key", "default"), sections())
def test_every_setting_is_documented_with_its_default(section: str, key: str, default: Any) -> None:
    row = re.search(rf"^\| `{section}\.{key}` \| (.+?) \|", read("docs/configuration.md"), re.M)
    assert row, f"{section}.{key}"
    if default is not None and not callable(default) and "PydanticUndefined" not in repr(default):
        shown = row.group(1).strip("`")
        plain = str(default).lower() if isinstance(default, bool) else str(default)
        assert shown.replace(" ", "") == plain.replace(" ", "").replace("'", '"'), f"{section}.{key}"


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", read("docs/configuration.md"), re.M))
    assert documented == {f"{section}.{key}" for section, key, _ in sections()}


def test_contributing_says_why_each_dependency_is_there() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["install_requires"].split() + config["options.extras_require"]["dev"].split()
    names = {re.split(r"[<>=\[]", entry)[0] for entry in listed}
    text = read("CONTRIBUTING.md")
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
