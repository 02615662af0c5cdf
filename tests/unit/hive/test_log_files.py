"""Reading the logs of a node: the last lines of all files, and what follows."""

import json
import os
from pathlib import Path

import pytest

from rbee.hive.log_files import LogFiles, LogLine


def entry(second: int, text: str) -> str:
    return json.dumps({"timestamp": f"2026-01-31T08:00:{second:02d}.000Z", "message": text})


def append(path: Path, *lines: str, end: str = "\n") -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + end)


def texts(lines: list[LogLine]) -> list[str]:
    return [json.loads(line.line)["message"] if line.line.startswith("{") else line.line for line in lines]


def rotate(path: Path) -> None:
    """As logging's RotatingFileHandler does it."""
    for number in (2, 1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    os.replace(path, path.with_name(f"{path.name}.1"))


@pytest.fixture
def hive_log(tmp_path: Path) -> Path:
    return tmp_path / "rbee-hive.log"


def test_the_last_lines_of_all_logs_come_in_order_of_time(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, entry(1, "a"), entry(4, "d"))
    append(tmp_path / "worker-1.log", entry(2, "b"), entry(5, "e"))
    append(tmp_path / "worker-2.log", entry(3, "c"))
    append(tmp_path / "queen-rbee.log", entry(9, "not the hive's"))
    lines = LogFiles(tmp_path).last_lines(4)
    assert texts(lines) == ["b", "c", "d", "e"]
    assert [line.source for line in lines] == ["worker-1", "worker-2", "rbee-hive", "worker-1"]
    assert lines[0].wire() == {"source": "worker-1", "line": entry(2, "b")}


def test_a_line_without_a_time_stays_with_the_one_before_it(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, entry(1, "a"), "Traceback (most recent call last):", "ValueError")
    append(tmp_path / "worker-1.log", entry(2, "b"))
    assert texts(LogFiles(tmp_path).last_lines(10)) == [
        "a",
        "Traceback (most recent call last):",
        "ValueError",
        "b",
    ]


def test_one_workers_log_can_be_read_alone(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, entry(1, "hive"))
    append(tmp_path / "worker-1.log", entry(2, "one"))
    append(tmp_path / "worker-10.log", entry(3, "ten"))
    files = LogFiles(tmp_path, "worker-1")
    assert texts(files.last_lines(10)) == ["one"]
    append(hive_log, entry(4, "hive"))
    append(tmp_path / "worker-1.log", entry(5, "two"))
    assert texts(list(files.new_lines())) == ["two"]


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_lines_are_counted_across_rotated_files(tmp_path: Path, hive_log: Path, count: int) -> None:
    for number in range(6):
        append(hive_log, entry(number, str(number)))
        if number in (1, 3):
            rotate(hive_log)
    assert texts(LogFiles(tmp_path).last_lines(count)) == [str(n) for n in range(6)][6 - min(count, 6) :]


def test_nothing_to_read_is_no_error(tmp_path: Path) -> None:
    files = LogFiles(tmp_path / "none")
    assert files.last_lines(10) == []
    assert list(files.new_lines()) == []


def test_new_lines_begin_where_the_last_ones_ended(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, entry(1, "old"))
    files = LogFiles(tmp_path)
    assert texts(files.last_lines(0)) == []
    assert list(files.new_lines()) == []
    append(hive_log, entry(2, "new"), entry(3, "newer"))
    assert texts(list(files.new_lines())) == ["new", "newer"]
    assert list(files.new_lines()) == []


def test_a_line_is_told_only_when_it_is_complete(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, "whole", "ha", end="")
    files = LogFiles(tmp_path)
    assert texts(files.last_lines(10)) == ["whole"]
    append(hive_log, "lf", end="")
    assert list(files.new_lines()) == []
    append(hive_log, "!")
    assert texts(list(files.new_lines())) == ["half!"]


def test_a_rotation_between_two_looks_loses_and_repeats_nothing(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, "1")
    files = LogFiles(tmp_path)
    assert texts(files.last_lines(10)) == ["1"]
    append(hive_log, "2")
    rotate(hive_log)
    assert list(files.new_lines()) == [], "between the two renames there is no file"
    append(hive_log, "3")
    assert texts(list(files.new_lines())) == ["2", "3"]
    append(hive_log, "4")
    assert texts(list(files.new_lines())) == ["4"]


def test_a_truncated_file_is_read_from_its_beginning(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, "a long line that was there before")
    files = LogFiles(tmp_path)
    files.last_lines(10)
    hive_log.write_text("new\n")
    assert texts(list(files.new_lines())) == ["new"]


def test_the_log_of_a_new_worker_is_followed_from_its_beginning(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, "1")
    files = LogFiles(tmp_path)
    files.last_lines(10)
    append(tmp_path / "worker-9.log", "started")
    assert [line.wire() for line in files.new_lines()] == [{"source": "worker-9", "line": "started"}]


def test_control_characters_and_broken_text_are_made_visible(tmp_path: Path, hive_log: Path) -> None:
    hive_log.write_bytes(b"\x1b[31mred\x00 \xff\xfe\n")
    assert LogFiles(tmp_path).last_lines(1)[0].line == "\\x1b[31mred\\x00 ��"


def test_a_line_without_end_is_cut_and_costs_bounded_memory(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, "1")
    files = LogFiles(tmp_path)
    files.last_lines(1)
    append(hive_log, "x" * 200_000, end="")
    assert [len(line.line) for line in files.new_lines()] == [65536]
    append(hive_log, "")
    append(hive_log, "2")
    assert texts(list(files.new_lines()))[-1] == "2"


def test_ten_thousand_lines_of_a_large_log_are_read_from_its_end(tmp_path: Path, hive_log: Path) -> None:
    append(hive_log, *(f"{number:06d} {'x' * 80}" for number in range(100_000)))
    lines = LogFiles(tmp_path).last_lines(10_000)
    assert len(lines) == 10_000
    assert (lines[0].line[:6], lines[-1].line[:6]) == ("090000", "099999")
