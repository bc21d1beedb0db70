import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.serving.stop import StopCutter, cut


def in_pieces(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    cutter = StopCutter(stops)
    shown = "".join(cutter.feed(piece) for piece in pieces)
    return shown + cutter.rest(), cutter.hit


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two", (), "one two"),
        ("one two", ("x",), "one two"),
        ("one two", ("two",), "one "),
        ("one two", ("one",), ""),
        ("one two one", ("two", "ne"), "o"),
        ("aab", ("ab",), "a"),
        ("aaab", ("aab",), "a"),
        ("abc", ("abcd", "c"), "ab"),
        ("abcd", ("abcd", "c"), "ab"),  # complete first wins, however it arrives
        ("xabc", ("abc", "bc"), "x"),  # complete at once: the one that begins first
        ("ende", ("ende!",), "ende"),
    ],
)
def test_text_is_cut_before_the_first_stop(text: str, stops: tuple[str, ...], shown: str) -> None:
    assert cut(text, stops) == (shown, shown != text)


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=8),
    st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3).map(tuple),
)
def test_the_cut_does_not_depend_on_the_pieces(pieces: list[str], stops: tuple[str, ...]) -> None:
    text = "".join(pieces)
    shown, hit = in_pieces(pieces, stops)
    assert (shown, hit) == cut(text, stops)
    assert (shown, hit) == in_pieces(list(text), stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert hit == any(stop in text for stop in stops)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    cutter = StopCutter(("END",))
    assert cutter.feed("the E") == "the "
    assert cutter.feed("ar") == "Ear"
    assert cutter.feed("END and more") == ""
    assert cutter.feed("more") == ""
    assert cutter.rest() == ""
