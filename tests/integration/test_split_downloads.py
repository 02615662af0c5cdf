"""Split models from a hub: all parts are fetched as one model, verified one by one, and kept together."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from rbee.core.references import parse_model_ref
from rbee.models.catalog import Catalog, CatalogRow
from rbee.models.split_files import combined_digest, parts_of
from support.daemons import wait_until
from support.file_sending import Fault
from support.gguf_factory import TinyModel
from support.hub_server import Hub, Stated
from support.llama_cpp import reference
from support.provisioning import Place, Provisioner, run_provisioner

REPO = "org/big"
MODEL = TinyModel(layers=3, width=256, inner=768, head_dim=64)
QUANTISATION = "F32"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first part of a model in four files."""
    return MODEL.write(tmp_path_factory.mktemp("split") / f"big-{QUANTISATION}.gguf", tensors_per_part=8)


@pytest.fixture
def hub(tmp_path: Path, source: Path) -> Iterator[Hub]:
    shutil.copytree(source.parent, tmp_path / "hub" / REPO)
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def env(place: Place, hub: Hub) -> dict[str, str]:
    return place.environment({"HF_ENDPOINT": hub.url})


def names(source: Path) -> list[str]:
    return [f"hf/{REPO}/{part.name}" for part in parts_of(source)]


def sizes(source: Path) -> list[int]:
    return [part.stat().st_size for part in parts_of(source)]


def row(place: Place, ref: str) -> CatalogRow:
    found = Catalog(place.catalog_db).find(parse_model_ref(ref))
    assert found is not None
    return found


@pytest.mark.parametrize("form", ["{repo}", "{repo}:f32", "{repo}/{first}"])
def test_every_reference_fetches_all_parts_as_one_model(
    place: Place, hub: Hub, env: dict[str, str], source: Path, form: str
) -> None:
    ref = f"hf:{form.format(repo=REPO, first=source.name)}"
    child = run_provisioner(place.fetch_args(ref), env)
    assert child.final == {"stage": "complete", "local_path": str(place.models_dir / names(source)[0])}
    assert place.files() == names(source)
    digests = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts_of(source)]
    recorded = row(place, ref)
    assert recorded.size_bytes == sum(sizes(source))
    assert recorded.part_digests == tuple(digests)
    assert recorded.digest == combined_digest(digests)
    assert recorded.revision == hub.commit(REPO)
    assert [request.sent for request in hub.recorder.transfers()] == sizes(source)


def test_progress_counts_the_bytes_of_all_parts_and_never_goes_back(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    hub.spoil(Fault("throttle", bytes_per_s=6_000_000), Fault("reset", at=0.4, times=1))
    child = run_provisioner(place.fetch_args(f"hf:{REPO}"), env)
    done = [event["bytes_downloaded"] for event in child.progress]
    assert done == sorted(done)
    assert done[-1] == sum(sizes(source))
    assert len({number for number in done if number > sizes(source)[0]}) >= 2
    assert {event["bytes_total"] for event in child.progress} == {sum(sizes(source))}


def test_after_a_kill_only_the_missing_bytes_of_the_missing_parts_are_fetched(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    third = parts_of(source)[2].name
    hub.spoil(Fault("hold", at=0.5, times=1, name=third))
    partial = place.models_dir / f"{names(source)[2]}.partial"
    half = sizes(source)[2] // 2
    with Provisioner(place.fetch_args(f"hf:{REPO}"), env) as child:
        wait_until(lambda: partial.exists() and partial.stat().st_size == half, what="half of the third")
        child.end(signal.SIGKILL)
    hub.recorder.transfers()
    hub.recorder.clear()
    second = run_provisioner(place.fetch_args(f"hf:{REPO}"), env)
    assert second.final["stage"] == "complete"
    assert second.progress[0]["bytes_downloaded"] >= sum(sizes(source)[:2]) + half
    asked = [(Path(r.path.partition("?")[0]).name, r.range) for r in hub.recorder.transfers()]
    assert asked == [(third, f"bytes={half}-"), (parts_of(source)[3].name, None)]
    assert [(place.models_dir / name).read_bytes() for name in names(source)] == [
        part.read_bytes() for part in parts_of(source)
    ]


def test_a_second_process_waits_and_sees_all_parts_grow(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    hub.spoil(Fault("hold", at=0.5, times=1, name=parts_of(source)[1].name))
    partial = place.models_dir / f"{names(source)[1]}.partial"
    with Provisioner(place.fetch_args(f"hf:{REPO}"), env) as first:
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0, what="the second part")
        with Provisioner(place.fetch_args(f"hf:{REPO}:F32"), env) as second:
            second.wait_for('"downloading"')
            hub.recorder.released.set()
            assert (first.wait(), second.wait()) == (0, 0)
    assert second.progress[0]["bytes_downloaded"] > sizes(source)[0]
    assert second.progress[-1]["bytes_downloaded"] == sum(sizes(source))
    assert len(hub.recorder.transfers()) == 4


def test_only_the_damaged_part_is_fetched_once_more(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    bad = parts_of(source)[1].name
    hub.spoil(Fault("flip", at=0.5, times=1, name=bad))
    assert run_provisioner(place.fetch_args(f"hf:{REPO}"), env).final["stage"] == "complete"
    asked = [Path(request.path.partition("?")[0]).name for request in hub.recorder.transfers()]
    assert sorted(asked) == sorted([part.name for part in parts_of(source)] + [bad])


def test_a_part_that_stays_wrong_is_refused_and_the_good_ones_stay_for_the_next_try(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    hub.spoil(Fault("flip", at=0.5, name=parts_of(source)[1].name))
    child = run_provisioner(place.fetch_args(f"hf:{REPO}"), env)
    assert child.final["error"]["code"] == "CHECKSUM_MISMATCH"
    assert place.files() == names(source)[:1]
    assert Catalog(place.catalog_db).list() == ()


@pytest.mark.parametrize("number", [2, 4])
def test_a_further_part_cannot_be_named_and_the_first_is_suggested(
    place: Place, hub: Hub, env: dict[str, str], source: Path, number: int
) -> None:
    child = run_provisioner(place.fetch_args(f"hf:{REPO}/{parts_of(source)[number - 1].name}"), env)
    assert child.final["error"]["code"] == "MODEL_NOT_FOUND"
    assert f"part {number} of 4; name the first part: {source.name}" in child.final["error"]["message"]
    assert hub.recorder.transfers() == []


def test_a_repository_without_all_parts_is_refused_before_any_byte(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    (hub.root / REPO / parts_of(source)[3].name).unlink()
    child = run_provisioner(place.fetch_args(f"hf:{REPO}/{source.name}"), env)
    assert child.final["error"]["code"] == "MODEL_NOT_FOUND"
    assert f"lacks 1 of its parts, first {parts_of(source)[3].name}" in child.final["error"]["message"]
    assert hub.recorder.transfers() == []


def test_a_part_larger_than_the_disk_is_refused_and_nothing_is_left(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    hub.stated[f"{REPO}/{source.name}"] = Stated(size=2**60)
    child = run_provisioner(place.fetch_args(f"hf:{REPO}"), env)
    assert child.final["error"]["code"] == "DISK_FULL"
    assert place.files() == []


def test_parts_in_the_users_cache_are_used_in_place_and_not_copied(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    for part in parts_of(source):
        cached = hf_hub_download(
            REPO, part.name, endpoint=hub.url, cache_dir=Path(env["HF_HOME"]) / "hub", token=False
        )
    hub.recorder.clear()
    child = run_provisioner(place.fetch_args(f"hf:{REPO}"), env)
    assert child.final["local_path"] == str(Path(cached).with_name(source.name))
    assert hub.recorder.transfers() == []
    assert row(place, f"hf:{REPO}").size_bytes == sum(sizes(source))
    offline = run_provisioner(place.fetch_args(f"hf:{REPO}:F32"), {**env, "HF_HUB_OFFLINE": "1"})
    assert offline.final["local_path"] == child.final["local_path"]


def test_a_cache_with_some_of_the_parts_is_not_mixed_with_fetched_ones(
    place: Place, hub: Hub, env: dict[str, str], source: Path
) -> None:
    hf_hub_download(REPO, source.name, endpoint=hub.url, cache_dir=Path(env["HF_HOME"]) / "hub", token=False)
    run_provisioner(place.fetch_args(f"hf:{REPO}"), env)
    assert place.files() == names(source)


def test_a_fetched_split_model_is_converted_from_all_its_parts(
    place: Place, hub: Hub, env: dict[str, str], tmp_path: Path
) -> None:
    del hub
    fetched = Path(run_provisioner(place.fetch_args(f"hf:{REPO}"), env).final["local_path"])
    child = run_provisioner(place.convert_args(f"hf:{REPO}", fetched, "float32"), env)
    folder = Path(child.final["local_path"])
    whole = MODEL.write(tmp_path / "whole.gguf")
    run_provisioner(place.fetch_args(f"file:{whole}"), env)
    expected = run_provisioner(place.convert_args(f"file:{whole}", whole, "float32"), env).final["local_path"]
    assert (folder / "model.bin").read_bytes() == (Path(expected) / "model.bin").read_bytes()
    assert json.loads((folder / "rbee.json").read_text())["source_sha256"] == row(place, f"hf:{REPO}").digest


@pytest.mark.reference
def test_llama_cpp_takes_the_parts_for_the_model_that_they_are(source: Path, tmp_path: Path) -> None:
    whole = MODEL.write(tmp_path / "whole.gguf")
    prompt = [5, 9, 40, 7]
    with reference(source, 64) as split, reference(whole, 64) as one:
        assert split.top(prompt, 5) == one.top(prompt, 5)
