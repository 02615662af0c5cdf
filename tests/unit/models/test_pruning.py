"""Pruning takes left-overs of dead work and what nobody needs, and never what is in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee.core.references import ModelRef, parse_model_ref
from rbee.models.catalog import Catalog
from rbee.models.conversion_lock import ConversionProgress, exclusive_conversion
from rbee.models.converted_folders import RECIPE
from rbee.models.pruning import InUse, Kind, Pruned, Pruning
from rbee.models.transfer_lock import exclusive_transfer
from support.listeners import RecordingListener

REPO = parse_model_ref("hf:org/repo")
OTHER = parse_model_ref("hf:org/other")
DIGEST, GONE = "cd" * 32, "ef" * 32
NOW = 2_000_000_000


class Node:
    """A models directory with its catalog."""

    def __init__(self, root: Path) -> None:
        self.models_dir = root / "models"
        self.repo = self.models_dir / "hf" / "org" / "repo"
        self.clock = NOW
        self.catalog = Catalog(root / "models.db", clock=lambda: self.clock)
        self.refs: frozenset[ModelRef] = frozenset()
        self.folders: frozenset[Path] = frozenset()

    def write(self, path: Path, size: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF" + bytes(size - 4))
        return path

    def model(self, ref: ModelRef = REPO, digest: str | None = DIGEST) -> Path:
        path = self.write(self.models_dir / "hf" / ref.reference / "m.gguf")
        self.catalog.add(ref, path, 100, digest)
        return path

    def conversion(self, digest: str = DIGEST, kind: str = "int8", recipe: int = RECIPE) -> Path:
        folder = self.models_dir / "ct2" / f"{digest}-{kind}"
        self.write(folder / "model.bin", 50)
        description = {"recipe": recipe, "files": {"model.bin": 50}, "source_size_bytes": 100}
        (folder / "rbee.json").write_text(json.dumps(description))
        return folder

    def prune(self, unused_since: float | None = None, *, dry_run: bool = False) -> list[Pruned]:
        pruning = Pruning(
            self.models_dir, self.catalog, lambda: InUse(self.refs, self.folders), dry_run=dry_run
        )
        return pruning.run(unused_since)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_directory_in_good_order_loses_nothing(node: Node) -> None:
    model, folder = node.model(), node.conversion()
    assert node.prune(unused_since=NOW - 10) == []
    assert model.exists()
    assert folder.exists()


def test_an_empty_or_missing_directory_has_nothing_to_prune(node: Node) -> None:
    assert node.prune(unused_since=NOW) == []


LEFT_OVERS = [
    "m.gguf.partial",
    "m.gguf.partial.json",
    "m.gguf.whl",
    "m.gguf.whl.partial",
    "m.gguf.whl.partial.json",
    ".wheel-m.gguf-a1b2c3_d/pkg-1.0.whl",
]


@pytest.mark.parametrize("name", LEFT_OVERS)
def test_what_a_dead_transfer_left_goes_with_its_bytes_counted(node: Node, name: str) -> None:
    node.write(node.repo / name, 70)
    (pruned,) = node.prune()
    assert (pruned.kind, pruned.size_bytes, pruned.path) == (
        Kind.DOWNLOAD,
        70,
        node.repo / Path(name).parts[0],
    )
    assert not node.repo.exists(), "folders that became empty go, too"


@pytest.mark.parametrize("name", LEFT_OVERS)
def test_what_a_living_transfer_needs_stays(node: Node, name: str) -> None:
    left = node.write(node.repo / name, 70)
    with exclusive_transfer(node.models_dir, [node.repo / "m.gguf"], None, RecordingListener()):
        assert node.prune() == []
    assert left.exists()


def test_a_part_belongs_to_the_transfer_of_the_whole_model(node: Node) -> None:
    names = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    left = node.write(node.repo / f"{names[1]}.partial")
    with exclusive_transfer(node.models_dir, [node.repo / name for name in names], None, RecordingListener()):
        assert node.prune() == []
    assert [item.path for item in node.prune()] == [left]


UNSEEN = ConversionProgress(lambda _done, _total: None, lambda _done, _total: None)


def test_an_unfinished_conversion_goes_unless_its_maker_lives(node: Node) -> None:
    ct2 = node.models_dir / "ct2"
    key = f"{DIGEST}-int8"
    with exclusive_conversion(ct2, key, UNSEEN):
        left = ct2 / f".{key}.123-4f.partial"
        node.write(left / "model.bin", 30)
        assert node.prune() == []
    (pruned,) = node.prune()
    assert (pruned.path, pruned.size_bytes, pruned.kind) == (left, 30, Kind.CONVERSION)
    assert not left.exists()


def test_a_removal_cut_short_is_finished(node: Node) -> None:
    left = node.models_dir / "ct2" / f".removed-{DIGEST}-int8"
    node.write(left / "model.bin", 30)
    assert [item.path for item in node.prune()] == [left]
    assert not left.exists()


def incomplete(node: Node) -> Path:
    folder = node.conversion()
    (folder / "model.bin").write_bytes(b"short")
    return folder


def undescribed(node: Node) -> Path:
    folder = node.conversion()
    (folder / "rbee.json").unlink()
    return folder


def outdated(node: Node) -> Path:
    return node.conversion(recipe=RECIPE - 1)


def orphaned(node: Node) -> Path:
    return node.conversion(GONE)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (incomplete, "it is incomplete"),
        (undescribed, "it is incomplete"),
        (outdated, "it was made by an older version"),
        (orphaned, "its model is no longer here"),
    ],
)
def test_a_conversion_that_nobody_can_use_goes(node: Node, make: Callable[[Node], Path], reason: str) -> None:
    model, good, folder = node.model(), node.conversion(kind="float32"), make(node)
    (pruned,) = node.prune()
    assert (pruned.path, pruned.reason) == (folder, reason)
    assert not folder.exists()
    assert model.exists()
    assert good.exists()


@pytest.mark.parametrize("make", [incomplete, outdated, orphaned])
def test_a_folder_that_a_worker_loaded_stays_whatever_became_of_its_model(
    node: Node, make: Callable[[Node], Path]
) -> None:
    folder = make(node)
    node.folders = frozenset({folder})
    assert node.prune() == []
    assert folder.exists()


def test_a_conversion_stays_while_its_model_is_used_or_worked_on(node: Node) -> None:
    node.model()
    folder = outdated(node)
    node.refs = frozenset({REPO})
    assert node.prune() == []
    node.refs = frozenset()
    with exclusive_conversion(folder.parent, folder.name, UNSEEN):
        assert node.prune() == []
    assert folder.exists()


def test_a_conversion_may_belong_to_a_model_whose_digest_is_not_known(node: Node) -> None:
    node.model(digest=None)
    assert node.prune() == []
    node.catalog.set_digests(REPO, DIGEST)
    assert len(node.prune()) == 0
    node.catalog.set_digests(REPO, GONE)
    node.conversion()
    assert [item.reason for item in node.prune()] == ["its model is no longer here"]


def test_models_not_used_for_long_go_with_conversions_and_rows(node: Node) -> None:
    node.clock = NOW - 1000
    old, folder = node.model(), node.conversion()
    node.model(OTHER, GONE)
    node.clock = NOW
    node.catalog.touch(OTHER)
    (pruned,) = node.prune(unused_since=NOW - 500)
    assert (pruned.kind, pruned.model_ref, pruned.path) == (Kind.MODEL, str(REPO), old)
    assert pruned.size_bytes == 100 + 50 + _DESCRIPTION_SIZE
    assert not old.exists()
    assert not folder.exists()
    assert [row.ref for row in node.catalog.list()] == [OTHER]


_DESCRIPTION_SIZE = len(json.dumps({"recipe": RECIPE, "files": {"model.bin": 50}, "source_size_bytes": 100}))


def test_a_model_just_fetched_counts_as_used(node: Node) -> None:
    node.model()
    assert node.prune(unused_since=NOW - 1) == []


@pytest.mark.parametrize("use", ["worker", "folder", "transfer", "conversion"])
def test_an_unused_model_that_somebody_needs_now_stays(node: Node, use: str) -> None:
    path, folder = node.model(), node.conversion()
    if use == "worker":
        node.refs = frozenset({REPO})
    elif use == "folder":
        node.folders = frozenset({folder})
    if use == "transfer":
        with exclusive_transfer(node.models_dir, [path], None, RecordingListener()):
            assert node.prune(unused_since=NOW + 1) == []
    elif use == "conversion":
        with exclusive_conversion(folder.parent, folder.name, UNSEEN):
            assert node.prune(unused_since=NOW + 1) == []
    else:
        assert node.prune(unused_since=NOW + 1) == []
    assert path.exists()
    assert folder.exists()
    assert node.catalog.find(REPO) is not None


def test_of_two_references_to_one_file_the_used_one_keeps_it(node: Node) -> None:
    path = node.model()
    quant = parse_model_ref("hf:org/repo:Q4_0")
    node.catalog.add(quant, path, 100, DIGEST)
    node.clock = NOW + 1000
    node.catalog.touch(quant)
    (pruned,) = node.prune(unused_since=NOW + 500)
    assert (pruned.model_ref, pruned.size_bytes) == (str(REPO), 0)
    assert path.exists()


def test_a_registered_file_is_never_deleted(node: Node, tmp_path: Path) -> None:
    own = node.write(tmp_path / "own.gguf")
    ref = parse_model_ref(f"file:{own}")
    node.catalog.add(ref, own, 100, DIGEST)
    (pruned,) = node.prune(unused_since=NOW + 1)
    assert (pruned.model_ref, pruned.size_bytes) == (str(ref), 0)
    assert own.exists()
    assert node.catalog.find(ref) is None


def test_a_dry_run_tells_the_same_and_removes_nothing(node: Node) -> None:
    node.model()
    node.conversion()
    orphaned(node)
    node.write(node.repo / "n.gguf.partial")
    before = sorted(path for path in node.models_dir.rglob("*") if ".locks" not in path.parts)
    told = node.prune(unused_since=NOW + 1, dry_run=True)
    assert sorted(path for path in node.models_dir.rglob("*") if ".locks" not in path.parts) == before
    assert len(node.catalog.list()) == 1
    assert node.prune(unused_since=NOW + 1) == told
    assert {item.kind for item in told} == set(Kind)


def test_a_link_out_of_the_models_directory_is_left_alone(node: Node, tmp_path: Path) -> None:
    outside = node.write(tmp_path / "outside.gguf.partial")
    node.repo.mkdir(parents=True)
    (node.repo / "m.gguf.partial").symlink_to(outside)
    assert node.prune() == []
    assert outside.exists()
