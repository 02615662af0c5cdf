"""The provisioner as a process: its lines, its deaths, its company, and what survives them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from rbee.core.references import parse_model_ref
from rbee.models.catalog import Catalog
from support.daemons import wait_until
from support.file_sending import Fault, Servers
from support.gguf_factory import TinyModel
from support.hub_server import Hub
from support.package_index import PackageIndex, build_wheel
from support.processes import is_alive
from support.provisioning import Place, Provisioner, run_provisioner

SIZE = 3_000_000
CONTENT = b"GGUF" + os.urandom(SIZE - 4)
REF = "hf:org/repo"
FILE = "hf/org/repo/model.Q4_0.gguf"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub" / "org" / "repo"
    folder.mkdir(parents=True)
    (folder / "model.Q4_0.gguf").write_bytes(CONTENT)
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Start = Callable[..., Provisioner]


@pytest.fixture
def start(place: Place, env: dict[str, str]) -> Iterator[Start]:
    """Starts provisioners and ends those that a failing test leaves behind."""
    with ExitStack() as running:

        def run(ref: str, extra: dict[str, str] | None = None) -> Provisioner:
            child = Provisioner(place.fetch_args(ref), {**env, **(extra or {})})
            return running.enter_context(child)

        yield run


@pytest.fixture
def env(place: Place, hub: Hub) -> dict[str, str]:
    return place.environment({"HF_ENDPOINT": hub.url})


def _partial(place: Place) -> int:
    path = place.models_dir / f"{FILE}.partial"
    return path.stat().st_size if path.exists() else 0


HALF = SIZE // 2


def _hold_at_half(servers: Servers) -> None:
    """The first transfer stops at half of the file until it is released."""
    servers.recorder.faults[:] = [Fault("hold", at=0.5, times=1)]


def _wait_for_half(place: Place) -> None:
    wait_until(lambda: _partial(place) == HALF, what="half of the file")


def test_every_line_is_an_event_and_the_last_one_names_the_file(
    place: Place, hub: Hub, env: dict[str, str]
) -> None:
    hub.spoil(Fault("throttle", bytes_per_s=4_000_000))
    child = run_provisioner(place.fetch_args(REF), env)
    assert child.final == {"stage": "complete", "local_path": str(place.models_dir / FILE)}
    sizes = [event["bytes_downloaded"] for event in child.progress]
    assert sizes == sorted(sizes)
    assert 2 <= len(sizes) <= 25
    assert sizes[-1] == SIZE
    assert {event["bytes_total"] for event in child.progress} == {SIZE}
    assert all(event["speed_mbps"] > 0 for event in child.progress)
    assert child.narration[0] == f"Looking up {REF}"
    row = Catalog(place.catalog_db).find(parse_model_ref(REF))
    assert row is not None
    assert row.digest == hashlib.sha256(CONTENT).hexdigest()


def test_after_a_kill_only_missing_bytes_are_fetched_again(
    place: Place, hub: Hub, env: dict[str, str], start: Start
) -> None:
    _hold_at_half(hub)
    child = start(REF)
    _wait_for_half(place)
    child.end(signal.SIGKILL)

    second = run_provisioner(place.fetch_args(REF), env)
    assert second.final["stage"] == "complete"
    assert (place.models_dir / FILE).read_bytes() == CONTENT
    rest = hub.recorder.transfers()[-1]
    assert rest.range == f"bytes={HALF}-"
    assert rest.sent == SIZE - HALF
    assert second.progress[0]["bytes_downloaded"] > HALF
    assert place.files() == [FILE]


def test_a_killed_wheel_download_continues_too(place: Place, tmp_path: Path, start: Start) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = build_wheel(wheels, "a-model", "1.0", {"a_model/model.gguf": CONTENT})
    ref = "pypi:a-model==1.0/model.gguf"
    with PackageIndex(wheels) as index:
        env = place.environment({"PIP_INDEX_URL": index.url})
        # pip itself asks for ranges, to read the metadata at the wheel's end.
        index.spoil(Fault("hold", at=0.5, whole_only=True))
        child = start(ref, {"PIP_INDEX_URL": index.url})
        partial = place.models_dir / "pypi/a-model==1.0/model.gguf.whl.partial"
        kept = wheel.stat().st_size // 2
        wait_until(lambda: partial.exists() and partial.stat().st_size == kept, what="half of the wheel")
        child.end(signal.SIGKILL)
        index.spoil()
        second = run_provisioner(place.fetch_args(ref), env)
        last = index.recorder.transfers()[-1]
    assert second.final["stage"] == "complete"
    assert last.range == f"bytes={kept}-"
    assert last.sent == wheel.stat().st_size - kept
    assert place.files() == ["pypi/a-model==1.0/model.gguf"]


def test_a_terminated_download_says_so_and_keeps_its_bytes(
    place: Place, hub: Hub, env: dict[str, str], start: Start
) -> None:
    _hold_at_half(hub)
    child = start(REF)
    _wait_for_half(place)
    assert child.end(signal.SIGTERM) == 1
    assert child.final["error"]["code"] == "SERVICE_UNAVAILABLE"
    assert _partial(place) == HALF
    assert run_provisioner(place.fetch_args(REF), env).final["stage"] == "complete"


def test_it_does_not_outlive_the_process_that_started_it(place: Place, hub: Hub, env: dict[str, str]) -> None:
    hub.spoil(Fault("stall", at=0.5))
    starter = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'rbee.models.provisioner', *sys.argv[1:]],\n"
        "                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, *place.fetch_args(REF)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        _wait_for_half(place)
        assert child.is_running()
        parent.kill()
    wait_until(lambda: not is_alive(child.pid), what="its end")


def test_it_ends_when_nobody_reads_any_more(place: Place, hub: Hub, env: dict[str, str]) -> None:
    _hold_at_half(hub)
    process = subprocess.Popen(
        [sys.executable, "-m", "rbee.models.provisioner", *place.fetch_args(REF)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    _wait_for_half(place)
    process.stdout.close()
    hub.recorder.released.set()
    assert process.wait(30) == 1
    assert place.files() != [FILE]


def test_two_processes_share_one_transfer_and_both_see_it_grow(
    place: Place, hub: Hub, env: dict[str, str], start: Start
) -> None:
    _hold_at_half(hub)
    first = start(REF)
    _wait_for_half(place)
    second = start(f"{REF}:Q4_0")
    second.wait_for('"downloading"')
    hub.recorder.released.set()
    assert (first.wait(), second.wait()) == (0, 0)
    assert first.final == second.final
    assert len(hub.recorder.transfers()) == 1
    assert any("Waiting for the download" in line for line in second.narration)
    watched = [event["bytes_downloaded"] for event in second.progress]
    assert (watched[0], watched[-1]) == (HALF, SIZE)
    assert {event["bytes_total"] for event in second.progress} == {SIZE}
    assert [str(row.ref) for row in Catalog(place.catalog_db).list()] == [REF, f"{REF}:Q4_0"]


def test_the_one_who_waits_takes_over_when_the_other_dies(
    place: Place, hub: Hub, env: dict[str, str], start: Start
) -> None:
    _hold_at_half(hub)
    first = start(REF)
    _wait_for_half(place)
    second = start(REF)
    second.wait_for("Waiting for the download")
    first.end(signal.SIGKILL)
    assert second.wait() == 0
    assert (place.models_dir / FILE).read_bytes() == CONTENT
    assert [request.range for request in hub.recorder.transfers()] == [None, f"bytes={HALF}-"]


def test_an_unforeseen_failure_is_an_internal_error_and_its_traceback_goes_to_the_log(
    place: Place, env: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "huggingface_hub.py").write_text("raise RuntimeError('out of order')\n")
    child = run_provisioner(place.fetch_args(REF), {**env, "PYTHONPATH": f"{broken}:{env['PYTHONPATH']}"})
    assert child.final["error"]["code"] == "INTERNAL_ERROR"
    assert "out of order" not in child.final["error"]["message"]
    assert "Traceback" in child.stderr
    assert "RuntimeError: out of order" in child.stderr


def test_a_catalog_that_cannot_be_used_is_a_named_error_and_the_file_stays_for_later(
    place: Place, hub: Hub, env: dict[str, str]
) -> None:
    place.catalog_db.mkdir()
    child = run_provisioner(place.fetch_args(REF), env)
    assert child.final["error"]["code"] == "SERVICE_UNAVAILABLE"
    place.catalog_db.rmdir()
    assert run_provisioner(place.fetch_args(REF), env).final["stage"] == "complete"
    assert len(hub.recorder.transfers()) == 1


def test_wrong_usage_is_status_two_and_no_event(place: Place, start: Start) -> None:
    child = start("no-reference")
    assert child.wait() == 2
    assert child.lines == []
    assert "Invalid model reference" in child.stderr


def test_a_conversion_reports_tensors_and_stores_the_digest(place: Place) -> None:
    source = TinyModel().write(place.root / "tiny.gguf")
    ref = f"file:{source}"
    run_provisioner(place.fetch_args(ref), place.environment())
    child = run_provisioner(place.convert_args(ref, source, "float32"), place.environment())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert child.final["local_path"] == str(place.models_dir / "ct2" / f"{digest}-float32")
    assert (Path(child.final["local_path"]) / "model.bin").is_file()
    assert child.progress[0] == {
        "stage": "converting",
        "tensors_done": 0,
        "tensors_total": child.progress[0]["tensors_total"],
    }
    assert child.progress[-1]["tensors_done"] == child.progress[-1]["tensors_total"] > 0
    row = Catalog(place.catalog_db).find(parse_model_ref(ref))
    assert row is not None
    assert row.digest == digest


def test_a_file_that_cannot_be_converted_is_a_named_error(place: Place) -> None:
    source = place.root / "broken.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    ref = f"file:{source}"
    run_provisioner(place.fetch_args(ref), place.environment())
    child = run_provisioner(place.convert_args(ref, source, "float32"), place.environment())
    assert child.final["error"]["code"] == "MODEL_INCOMPATIBLE"
    assert "Traceback" not in child.stderr


def test_fetching_from_one_source_does_not_load_the_libraries_of_others(place: Place) -> None:
    script = (
        "import sys, rbee.models.provisioner, rbee.models.fetching\n"
        "import rbee.models.providers.package_index, rbee.models.providers.local_file\n"
        "heavy = {'huggingface_hub', 'numpy', 'gguf', 'ctranslate2', 'sqlalchemy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=place.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
