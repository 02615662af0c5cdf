"""The provisioner's command lines: what the hive builds is what the child understands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rbee.core.references import DEFAULT_MODEL, parse_model_ref
from rbee.models.provisioner_command import convert_argv, fetch_argv, parse
from support.daemons import environment


@pytest.mark.parametrize("text", [DEFAULT_MODEL, "hf:org/repo:Q4_K_M", "file:/srv/a.gguf"])
def test_a_fetch_command_carries_reference_places_and_policy(text: str) -> None:
    argv = fetch_argv(
        parse_model_ref(text),
        models_dir=Path("/srv/my models"),
        catalog_db=Path("/srv/models.db"),
        attempts=3,
        delays_ms=[10, 20],
        stall_timeout_s=1.5,
    )
    assert argv[:3] == [sys.executable, "-m", "rbee.models.provisioner"]
    parsed = parse(argv[3:])
    assert parsed.command == "fetch"
    assert parsed.ref == parse_model_ref(text)
    assert (parsed.models_dir, parsed.catalog_db) == (Path("/srv/my models"), Path("/srv/models.db"))
    assert (parsed.attempts, parsed.delays_ms, parsed.stall_timeout_s) == (3, (10, 20), 1.5)


def test_a_convert_command_carries_path_and_compute_type() -> None:
    argv = convert_argv(
        parse_model_ref(DEFAULT_MODEL),
        Path("/srv/a.gguf"),
        "int8_float32",
        models_dir=Path("/srv/models"),
        catalog_db=Path("/srv/models.db"),
    )
    parsed = parse(argv[3:])
    assert (parsed.command, parsed.path, parsed.compute_type) == (
        "convert",
        Path("/srv/a.gguf"),
        "int8_float32",
    )


def test_the_defaults_are_those_of_the_contract() -> None:
    parsed = parse(["fetch", "--ref", "hf:o/r", "--models-dir", "d", "--catalog-db", "c"])
    assert (parsed.attempts, parsed.delays_ms, parsed.stall_timeout_s) == (
        6,
        (100, 200, 400, 800, 1600),
        60.0,
    )


def test_the_hive_builds_commands_without_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys, rbee.models.provisioner_command\n"
        "heavy = {'numpy', 'gguf', 'sqlalchemy', 'requests', 'huggingface_hub', 'ctranslate2', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
