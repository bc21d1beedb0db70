"""What an upstream says in headers and errors, however odd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_core.upstream.wire import MOST_MESSAGE_CHARS, MOST_RETRY_AFTER_S, message_of, retry_after_s

NOON = 1_700_049_600.0  # 2023-11-15 12:00 UTC


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("86400", MOST_RETRY_AFTER_S),
        ("Wed, 15 Nov 2023 12:00:10 GMT", 10.0),
        ("Wed, 15 Nov 2023 11:00:00 GMT", 0.0),
        ("Thu, 16 Nov 2023 12:00:00 GMT", MOST_RETRY_AFTER_S),
        ("soon", 1.0),
        ("", 1.0),
        (None, 1.0),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after_s(header, NOON) == seconds


@given(st.text() | st.from_regex(r"\d{1,3} (Jan|Feb) \d{1,6} \d{1,3}:\d\d:\d\d [+-]\d{1,6}"))
def test_no_header_breaks_the_wait(header):
    assert 0 <= retry_after_s(header, NOON) <= MOST_RETRY_AFTER_S


@given(st.binary() | st.text().map(str.encode))
def test_no_body_breaks_the_message(body):
    message = message_of(body)
    assert len(message) <= MOST_MESSAGE_CHARS + 4
    assert message.isprintable()
