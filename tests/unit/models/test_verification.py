"""Verification reads every byte, names what is damaged and what to do, and tells how far it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbee.core.references import parse_model_ref
from rbee.models.catalog import Catalog
from rbee.models.conversion import convert
from rbee.models.file_digests import digests_of
from rbee.models.split_files import parts_of
from rbee.models.verification import Verdict, Verification
from support.gguf_factory import TinyModel

REPO = parse_model_ref("hf:org/repo")
QUANT = parse_model_ref("hf:org/repo:F32")


class Scene:
    """A models directory with one fetched model, and what its verification tells."""

    def __init__(self, root: Path) -> None:
        self.models_dir = root / "models"
        self.folder = self.models_dir / "hf" / "org" / "repo"
        self.folder.mkdir(parents=True)
        self.catalog = Catalog(root / "models.db")
        self.progress: list[tuple[str, int, int]] = []

    def add(self, path: Path) -> None:
        digest, part_digests = digests_of(path)
        size = sum(part.stat().st_size for part in parts_of(path))
        self.catalog.add(REPO, path, size, digest, part_digests=part_digests)

    def verify(self) -> list[Verdict]:
        told: list[Verdict] = []
        verification = Verification(
            self.catalog, self.models_dir, lambda *seen: self.progress.append((seen[0], seen[1], seen[2]))
        )
        assert verification.run(self.catalog.list(), told.append) == told
        return told


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_an_intact_model_is_ok_and_progress_ends_with_all_bytes(scene: Scene) -> None:
    path = TinyModel().write(scene.folder / "tiny.gguf")
    scene.add(path)
    (verdict,) = scene.verify()
    assert verdict == Verdict(str(REPO), digests_of(path)[0])
    done = [seen[1] for seen in scene.progress]
    assert done == sorted(done)
    assert scene.progress[0] == (str(REPO), 0, path.stat().st_size)
    assert scene.progress[-1] == (str(REPO), path.stat().st_size, path.stat().st_size)


def test_one_flipped_bit_is_found_and_the_remedy_named(scene: Scene) -> None:
    path = TinyModel().write(scene.folder / "tiny.gguf")
    scene.add(path)
    flip(path, path.stat().st_size - 5)
    (verdict,) = scene.verify()
    (problem,) = verdict.problems
    assert not verdict.is_ok
    assert problem.path == str(path)
    assert "digest differs" in problem.problem
    remedy = "rbee-keeper models remove hf:org/repo && rbee-keeper models pull hf:org/repo"
    assert remedy in problem.suggestion


def test_of_a_split_model_the_damaged_part_is_named(scene: Scene) -> None:
    first = TinyModel(layers=3).write(scene.folder / "tiny.gguf", tensors_per_part=8)
    scene.add(first)
    assert [verdict.is_ok for verdict in scene.verify()] == [True]
    flip(parts_of(first)[2], 2000)
    (verdict,) = scene.verify()
    assert [problem.path for problem in verdict.problems] == [str(parts_of(first)[2])]


def test_two_references_to_one_file_cost_one_reading(scene: Scene) -> None:
    path = TinyModel().write(scene.folder / "tiny.gguf")
    scene.add(path)
    scene.catalog.add(QUANT, path, path.stat().st_size, digests_of(path)[0])
    assert [verdict.is_ok for verdict in scene.verify()] == [True, True]
    assert scene.progress[-1][1:] == (path.stat().st_size, path.stat().st_size)


def test_a_file_without_a_known_digest_gets_one_when_its_header_is_right(
    scene: Scene, tmp_path: Path
) -> None:
    path = TinyModel().write(tmp_path / "own.gguf")
    ref = parse_model_ref(f"file:{path}")
    scene.catalog.add(ref, path, path.stat().st_size)
    (verdict,) = scene.verify()
    assert verdict == Verdict(str(ref), digests_of(path)[0])
    row = scene.catalog.find(ref)
    assert row is not None
    assert row.digest == digests_of(path)[0]


def test_a_file_without_a_known_digest_and_with_a_broken_header_is_damaged(
    scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    scene.catalog.add(parse_model_ref(f"file:{path}"), path, 104)
    (verdict,) = scene.verify()
    assert "Not a readable GGUF" in verdict.problems[0].problem
    assert str(path) in verdict.problems[0].suggestion


@pytest.mark.parametrize("damage", ["a file cut short", "a file gone", "no description"])
def test_an_incomplete_conversion_is_found(scene: Scene, damage: str) -> None:
    path = TinyModel().write(scene.folder / "tiny.gguf")
    scene.add(path)
    folder = convert(path, scene.models_dir, "int8", on_progress=lambda _done, _total: None)
    assert [verdict.is_ok for verdict in scene.verify()] == [True]
    if damage == "a file cut short":
        (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-1])
    else:
        (folder / ("vocabulary.json" if damage == "a file gone" else "rbee.json")).unlink()
    (verdict,) = scene.verify()
    (problem,) = verdict.problems
    assert problem.path == str(folder)
    assert problem.problem == "the conversion to int8 is incomplete"
    assert "models prune" in problem.suggestion


def test_a_conversion_of_an_older_version_is_no_damage(scene: Scene) -> None:
    path = TinyModel().write(scene.folder / "tiny.gguf")
    scene.add(path)
    folder = convert(path, scene.models_dir, "int8", on_progress=lambda _done, _total: None)
    description = json.loads((folder / "rbee.json").read_text())
    (folder / "rbee.json").write_text(json.dumps({**description, "recipe": 0}))
    assert [verdict.is_ok for verdict in scene.verify()] == [True]


def test_a_ready_folder_is_checked_for_its_files(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    scene.catalog.add(parse_model_ref(f"file:{folder}"), folder, 6)
    assert [verdict.is_ok for verdict in scene.verify()] == [True]
    (folder / "config.json").unlink()
    (verdict,) = scene.verify()
    assert "config.json" in verdict.problems[0].problem
