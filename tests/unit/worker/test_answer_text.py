"""Which text goes with which token event: whole characters, and nothing from a stop string on."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.testing.fake_text_model import ByteDecoder
from rbee.worker.answer_text import AnswerText, StopStrings


def events(tokens: bytes, stops: list[str]) -> tuple[list[str], bool, int]:
    """The texts of the events of an answer, whether it was stopped, and how many tokens were taken."""
    answer = AnswerText(ByteDecoder(), stops)
    texts: list[str] = []
    taken = 0
    for token in tokens:
        taken += 1
        texts += answer.feed(token)
        if answer.is_stopped:
            break
    return texts + answer.finish(), answer.is_stopped, taken


def cut_by_hand(text: str, stops: list[str]) -> str:
    """The text up to the stop string that is complete first, one character at a time."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def test_a_character_split_over_tokens_is_sent_whole() -> None:
    texts, _, _ = events("é🐝".encode(), [])
    assert texts == ["", "é", "", "", "", "🐝"]


def test_a_character_that_never_becomes_complete_is_marked_with_the_last_token() -> None:
    texts, _, taken = events(b"ab\xf0\x9f", [])
    assert texts == ["a", "b", "", "�"]
    assert taken == len(texts)


def test_a_possible_stop_string_is_held_back_until_it_is_decided() -> None:
    answer = AnswerText(ByteDecoder(), ["END"])
    sent = [answer.feed(byte) for byte in b"aENx"]
    assert sent == [["a"], [], [""], ["", "ENx"]]


def test_a_held_back_text_goes_out_with_the_last_token_when_nothing_follows() -> None:
    texts, is_stopped, taken = events(b"abEN", ["END"])
    assert "".join(texts) == "abEN"
    assert len(texts) == taken
    assert not is_stopped


def test_a_stop_string_and_what_follows_is_not_sent() -> None:
    texts, is_stopped, taken = events(b"ab END cd", ["END"])
    assert "".join(texts) == "ab "
    assert is_stopped
    assert taken == len(texts) == 6


def test_a_stop_string_over_several_pieces_is_found() -> None:
    stops = StopStrings(["\n\nUser:"])
    assert [stops.feed(piece) for piece in ("Hello\n", "\nUs", "er: hi")] == ["Hello", "", ""]
    assert stops.has_matched


def test_an_overlapping_start_is_not_lost() -> None:
    stops = StopStrings(["aab"])
    assert stops.feed("aa") == ""
    assert stops.feed("ab!") == "a"
    assert stops.has_matched


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["abcd", "b"], "abcd", "a"),
        (["cd", "bcd"], "abcd", "a"),
        (["x"], "", ""),
        (["🐝"], "a🐝b", "a"),
    ],
)
def test_the_stop_string_that_is_complete_first_counts(stops: list[str], text: str, expected: str) -> None:
    texts, _, _ = events(text.encode(), stops)
    assert "".join(texts) == expected


@given(
    text=st.text(alphabet="abcé", max_size=40),
    stops=st.lists(st.text(alphabet="abcé", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 40), max_size=10),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    expected = cut_by_hand(text, stops)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    filtered = StopStrings(stops)
    pieces = [filtered.feed(text[a:b]) for a, b in pairwise(edges)]
    assert "".join(pieces) + filtered.flush() == expected


@given(data=st.binary(max_size=30), stops=st.lists(st.text(min_size=1, max_size=4), max_size=2))
def test_there_is_exactly_one_event_per_token_taken(data: bytes, stops: list[str]) -> None:
    texts, is_stopped, taken = events(data, stops)
    assert len(texts) == taken
    if not is_stopped:
        assert "".join(texts) == data.decode("utf-8", "replace")
