"""The text of a failed stream is kept where only its owner can read it."""

import stat
from pathlib import Path

import pytest

from rbee_keeper.partial_result import partial_folder, save_partial_result


def test_the_file_is_named_for_its_request_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = save_partial_result("ä\nb", "r-1", tmp_path)
    assert path == tmp_path / "rbee-partial-r-1.txt"
    assert path.read_bytes() == "ä\nb".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    first = save_partial_result("one", "r-1", tmp_path)
    second = save_partial_result("two", "r-1", tmp_path)
    assert (first.read_text(), second.read_text()) == ("one", "two")


def test_a_folder_that_is_gone_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_partial_result("x", "r-1", tmp_path / "gone")


def test_tmpdir_decides_where(tmp_path: Path) -> None:
    assert partial_folder({"TMPDIR": str(tmp_path)}) == tmp_path
    assert partial_folder({}) == Path("/tmp")  # noqa: S108
