"""Every PID journal keeps these promises: the one in a file and the one that stands for it in unit tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rbee.hive.adapters.pid_journal import SqlitePidJournal
from rbee.hive.ports import JournalRow, PidJournal
from rbee.testing.fake_workers import MemoryJournal

FIRST = JournalRow("worker-a", 9200, 100, 1700000000.25, 8001, 1700000000)
SECOND = JournalRow("worker-b", 9200, 101, 1700000001.5, 8002, 1700000001)
OTHER = JournalRow("worker-c", 9201, 102, 1700000002.5, 8003, 1700000002)


@pytest.fixture(params=[MemoryJournal, SqlitePidJournal], ids=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PidJournal]:
    make: Callable[..., PidJournal] = request.param
    made = make() if make is MemoryJournal else make(tmp_path / "workers.db")
    yield made
    made.close()


def test_rows_come_back_as_they_were_added_in_order_of_their_start(journal: PidJournal) -> None:
    for row in (OTHER, FIRST, SECOND):
        journal.add(row)
    assert journal.rows() == [FIRST, SECOND, OTHER]


def test_a_hive_sees_the_rows_of_its_own_port(journal: PidJournal) -> None:
    for row in (FIRST, OTHER):
        journal.add(row)
    assert journal.rows(9200) == [FIRST]
    assert journal.rows(9999) == []


def test_removing_takes_one_row_and_an_unknown_one_is_no_error(journal: PidJournal) -> None:
    journal.add(FIRST)
    journal.add(SECOND)
    journal.remove("worker-a")
    journal.remove("worker-x")
    assert journal.rows() == [SECOND]


def test_clearing_leaves_the_rows_of_other_hives(journal: PidJournal) -> None:
    for row in (FIRST, SECOND, OTHER):
        journal.add(row)
    journal.clear(9200)
    assert journal.rows() == [OTHER]
