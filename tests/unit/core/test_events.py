"""Events survive any chunking, and the reader keeps their bytes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from rbee.core.events import EventReader, encode_event, narration


def read_all(chunks: list[bytes]) -> list[tuple[str, str]]:
    reader = EventReader()
    return [(event.name, event.data) for chunk in chunks for event in reader.feed(chunk)]


@given(
    st.lists(st.text(max_size=40), max_size=6),
    st.lists(st.integers(min_value=1, max_value=7), min_size=1, max_size=50),
)
def test_a_stream_reads_the_same_however_it_is_cut(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(encode_event({"token": text, "index": i}) for i, text in enumerate(texts))
    chunks, position = [], 0
    while position < len(stream):
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(stream[position : position + size])
        position += size
    assert [json.loads(data)["token"] for _, data in read_all(chunks)] == texts


def test_named_events_ids_comments_and_crlf_are_understood() -> None:
    stream = b": keep-alive\n\nevent: started\r\nid: 7\r\ndata: {}\r\n\r\ndata: a\ndata: b\n\n"
    assert read_all([stream]) == [("started", "{}"), ("", "a\nb")]


def test_raw_bytes_of_an_event_are_kept_as_they_came() -> None:
    raw = b'event: narration\r\ndata: {"human":"\xc3\xa9"}\r\n\r\n'
    reader = EventReader()
    assert [event.raw for cut in (raw[:31], raw[31:]) for event in reader.feed(cut)] == [raw]


def test_an_incomplete_event_stays_pending() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: half")) == []
    assert reader.pending == b"data: half"


def test_narration_is_cut_to_100_characters_but_retry_lines_are_not() -> None:
    assert len(narration("queen-rbee", "startup", "x" * 300)["human"]) == 100
    assert len(narration("queen-rbee", "retry", "x" * 300)["human"]) == 300
