"""Runs are recorded, bounded, and read back the newest first."""

from pathlib import Path

from rbee_keeper.provisioning import runs
from rbee_keeper.provisioning.runs import RunFolder, RunRecord, read_runs

RECORD = RunRecord("2026-01-31 08:00:00", "ada@blep", "upgrade", ["n1"], "0.1.1", check=False)


def test_a_record_is_read_back_the_newest_first(tmp_path: Path) -> None:
    for operation in ("install", "upgrade"):
        RunFolder(tmp_path, ["n1"]).write(
            RunRecord("2026-01-31 08:00:00", "ada@blep", operation, ["n1"], "0.1.1", check=False)
        )
    assert [run["operation"] for run in read_runs(tmp_path)] == ["upgrade", "install"]


def test_a_folder_without_a_readable_record_is_left_out(tmp_path: Path) -> None:
    RunFolder(tmp_path, ["n1"])
    (tmp_path / "20260131T080000Z-n2").mkdir()
    (tmp_path / "20260131T080000Z-n2" / "run.json").write_text("{")
    assert read_runs(tmp_path) == []


def test_the_folder_is_named_for_its_node_or_for_the_fleet(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, ["n1"]).path.name.endswith("-n1")
    assert RunFolder(tmp_path, ["n1", "n2"]).path.name.endswith("-fleet")


def test_only_the_newest_runs_are_kept(tmp_path: Path) -> None:
    made = [RunFolder(tmp_path, ["n1"]).path for _ in range(runs.KEPT_RUNS + 3)]
    assert sorted(tmp_path.iterdir()) == made[3:]


def test_the_output_is_bounded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ["n1"])
    for _ in range(3):
        folder.add_output("x" * (runs.OUTPUT_LIMIT_BYTES // 2))
    assert folder.output.stat().st_size == runs.OUTPUT_LIMIT_BYTES
