"""Attempts of a transfer: schedule, narration, and how they end."""

from __future__ import annotations

import pytest

from rbee.core.errors import DownloadFailed, DownloadTimeout, ModelNotFound
from rbee.models.transfers import RENEWING_BYTES, RetryPolicy, Transfer, TransferInterrupted
from support.listeners import RecordingListener

RESET = "Connection reset by peer"


class Source:
    """An operation that fails in the given ways, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return "bytes"


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


@pytest.fixture
def transfer(listener: RecordingListener, waits: list[float]) -> Transfer:
    return Transfer(RetryPolicy(), listener, sleep=waits.append)


def test_the_default_schedule_is_six_attempts_with_doubling_delays(
    transfer: Transfer, waits: list[float]
) -> None:
    source = Source(*[TransferInterrupted(RESET) for _ in range(9)])
    with pytest.raises(DownloadFailed) as caught:
        transfer.attempt(source)
    assert source.asked == 6
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert caught.value.details == {"attempts": 6, "last_error": RESET}
    assert caught.value.message == f"Model download failed after 6 attempts: {RESET}"


def test_a_transfer_that_gets_on_has_all_its_attempts_again(transfer: Transfer, waits: list[float]) -> None:
    failures = [TransferInterrupted(RESET) for _ in range(20)]

    def move() -> None:
        transfer.moved(RENEWING_BYTES)
        if failures:
            raise failures.pop()

    transfer.attempt(move)
    assert waits == [0.1] * 20


def test_a_transfer_that_hardly_moves_is_given_up_after_six_attempts(transfer: Transfer) -> None:
    asked = 0

    def creep() -> None:
        nonlocal asked
        asked += 1
        transfer.moved(RENEWING_BYTES // 6)
        raise TransferInterrupted(RESET)

    with pytest.raises(DownloadFailed):
        transfer.attempt(creep)
    assert asked == 6


def test_a_part_counts_among_the_bytes_of_the_whole(transfer: Transfer, listener: RecordingListener) -> None:
    with transfer.of_part(100, 250):
        transfer.listener.begin(10)
        transfer.listener.received(20, 50)
    transfer.listener.received(1, 2)
    assert listener.begun == [110]
    assert listener.progress == [(120, 250), (1, 2)]


def test_a_retry_is_narrated_in_the_words_of_the_contract(
    transfer: Transfer, listener: RecordingListener
) -> None:
    assert transfer.attempt(Source(TransferInterrupted(RESET))) == "bytes"
    assert listener.narration == [
        ("retry", "Error: Connection reset by peer"),
        ("retry", "Retrying download (attempt 2/6)... delay 100ms"),
    ]


def test_asking_and_moving_draw_on_the_same_number_of_attempts(
    transfer: Transfer, waits: list[float]
) -> None:
    transfer.attempt(Source(*[TransferInterrupted("HTTP 503")] * 4))
    with pytest.raises(DownloadFailed):
        transfer.attempt(Source(*[TransferInterrupted(RESET)] * 2))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6]


def test_stalls_alone_end_in_a_timeout(transfer: Transfer) -> None:
    with pytest.raises(DownloadTimeout) as caught:
        transfer.attempt(Source(*[TransferInterrupted("No data for 60 seconds", stalled=True)] * 6))
    assert caught.value.details == {"attempts": 6}


def test_one_other_failure_among_stalls_ends_in_a_failed_download(transfer: Transfer) -> None:
    failures = [TransferInterrupted("No data for 60 seconds", stalled=True)] * 5
    with pytest.raises(DownloadFailed):
        transfer.attempt(Source(TransferInterrupted(RESET), *failures))


def test_a_source_that_asks_for_patience_gets_it_within_the_stall_limit(
    listener: RecordingListener, waits: list[float]
) -> None:
    transfer = Transfer(RetryPolicy(stall_timeout_s=5), listener, sleep=waits.append)
    transfer.attempt(
        Source(
            TransferInterrupted("HTTP 429", retry_after_s=2),
            TransferInterrupted("HTTP 429", retry_after_s=3600),
        )
    )
    assert waits == [2.0, 5.0]
    assert listener.retries[1] == "Retrying download (attempt 2/6)... delay 2000ms"


def test_an_answer_that_no_attempt_changes_is_not_retried(transfer: Transfer, waits: list[float]) -> None:
    source = Source(ModelNotFound("hf:org/repo"))
    with pytest.raises(ModelNotFound):
        transfer.attempt(source)
    assert (source.asked, waits) == (1, [])


@pytest.mark.parametrize(("delays", "expected"), [((), [0.0, 0.0]), ((50,), [0.05, 0.05])])
def test_a_short_list_of_delays_repeats_its_last(
    delays: tuple[int, ...], expected: list[float], listener: RecordingListener, waits: list[float]
) -> None:
    transfer = Transfer(RetryPolicy(attempts=3, delays_ms=delays), listener, sleep=waits.append)
    transfer.attempt(Source(*[TransferInterrupted(RESET)] * 2))
    assert waits == expected
