"""A worker whose memory runs out says so, instead of dying."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.daemons import environment
from support.gguf_factory import TinyModel

# The limit is set in the process itself, relative to what it has mapped by then.
CHILD = """
import json, resource, sys
from pathlib import Path
import psutil
from rbee.core.errors import RbeeError
from rbee.worker.adapters.ctranslate2_engine import CTranslate2Engine
from rbee.worker.ports import Decoding

folder, when, room_mb = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def limit():
    mapped = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room_mb * 2**20,) * 2)

engine = CTranslate2Engine(
    folder, worker_id="w-1", device="cpu", device_index=0, compute_type="float32", slots=1, cores=2
)
try:
    if when == "loading":
        import ctranslate2
        limit()
    engine.load(lambda _progress: None)
    token = json.loads((folder / "vocabulary.json").read_text())[5]
    if when == "running":
        # The engine's threads are there once it has made a token, as after a worker's warm-up.
        first = engine.start([token], Decoding(max_tokens=1), lambda: None)
        first.wait_stopped(60)
        limit()
    run = engine.start([token] * 1200, Decoding(max_tokens=2), lambda: None)
    run.next_token(60)
    told = {"code": "OK"}
    run.wait_stopped(60)
except RbeeError as error:
    told = {"code": error.code, "details": error.details}
engine.unload()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 35 MB whose attention over 1,200 tokens takes more than that."""
    from rbee.models.conversion import convert

    home = tmp_path_factory.mktemp("large")
    model = TinyModel(width=512, heads=8, heads_kv=8, head_dim=64, inner=2048, layers=2, context=8192)
    path = model.write(home / "large.gguf")
    return convert(path, home, "float32", on_progress=lambda *_: None)


def told(tmp_path: Path, folder: Path, when: str, room_mb: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), when, str(room_mb)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the kernel's")
@pytest.mark.parametrize(("when", "room_mb"), [("loading", 24), ("running", 16), ("running", 40)])
def test_memory_that_runs_out_is_an_answer_with_amounts(
    tmp_path: Path, folder: Path, when: str, room_mb: int
) -> None:
    answer = told(tmp_path, folder, when, room_mb)
    assert answer["code"] == "VRAM_EXHAUSTED"
    details = answer["details"]
    assert isinstance(details, dict)
    assert details["resource"] == "ram"
    assert details["required"] > details["available"] >= 0


def test_with_memory_enough_there_is_no_such_answer(tmp_path: Path, folder: Path) -> None:
    assert told(tmp_path, folder, "running", 16_000) == {"code": "OK"}
