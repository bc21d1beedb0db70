"""Server-sent events, cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_core.upstream.sse import EventParser, TooLong

CASES = {
    "one event": (b"data: a\n\n", [b"a"]),
    "no space after the colon": (b"data:a\n\n", [b"a"]),
    "only one space is taken away": (b"data:  a\n\n", [b" a"]),
    "carriage returns with line feeds": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "carriage returns alone": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "several lines of data": (b"data: a\ndata: b\n\n", [b"a\nb"]),
    "comments and other fields": (b": ping\n\nevent: x\nid: 1\nretry: 5\ndata: a\n\n: ping\n\n", [b"a"]),
    "a line without a colon": (b"data\ndata: a\n\n", [b"\na"]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "bytes of a character": ("data: ö\n\n".encode(), ["ö".encode()]),
    "an event that doesn't end": (b"data: a\n\ndata: b\n", [b"a"]),
    "a line that doesn't end": (b"data: a\n\ndata: b", [b"a"]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("sent", "events"), CASES.values(), ids=CASES.keys())
def test_events(sent, events):
    assert EventParser(100).feed(sent) == events


@given(st.sampled_from(sorted(CASES.values())), st.lists(st.integers(0, 60)))
def test_where_the_chunks_end_changes_nothing(case, cuts):
    sent, events = case
    parser, ends = EventParser(100), [0, *sorted(cuts), len(sent)]
    found = [data for start, end in pairwise(ends) for data in parser.feed(sent[start:end])]
    assert found == events


@pytest.mark.parametrize("piece", [b"data: aaaaaaaa\n", b"a"], ids=["an event", "a line"])
def test_neither_a_line_nor_an_event_grows_without_end(piece):
    def feed_on() -> None:
        parser = EventParser(100)
        for _ in range(200):
            parser.feed(piece)

    with pytest.raises(TooLong, match="at most 100 bytes"):
        feed_on()
