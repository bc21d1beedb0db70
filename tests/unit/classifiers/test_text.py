"""Words, sentences, paragraphs and lines: each row says what the text is an example of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers import text as texts


def parts(text, spans):
    return [text[start:end] for start, end in spans]


SENTENCES = {
    "nothing": ("", []),
    "no stop at the end": ("It rains", ["It rains"]),
    "three kinds of stop": ("It rains. Does it? It does!", ["It rains.", "Does it?", "It does!"]),
    "several stops count once": ("What?! No!!! Yes", ["What?!", "No!!!", "Yes"]),
    "a title": ("Dr. Moss met Mrs. Fern. They talked.", ["Dr. Moss met Mrs. Fern.", "They talked."]),
    "an initial": ("J. Moss wrote it.", ["J. Moss wrote it."]),
    "an abbreviation before a frequent word": (
        "She lives in the U.S. They don't.",
        ["She lives in the U.S.", "They don't."],
    ),
    "a decimal": ("It costs 3.50 dollars. Cheap.", ["It costs 3.50 dollars.", "Cheap."]),
    "a number ends one": ("It was 1990. Rain fell.", ["It was 1990.", "Rain fell."]),
    "dots before a small letter": ("Well... maybe. Yes.", ["Well... maybe.", "Yes."]),
    "closing quotes belong to it": ('He said "Go." She went.', ['He said "Go."', "She went."]),
    "line breaks end nothing": ("one\ntwo\nthree.", ["one\ntwo\nthree."]),
    "emphasis": ("**Rain.** It fell.", ["**Rain.", "** It fell."]),
    "full-width stops": ("雨です。雪です。", ["雨です。", "雪です。"]),
    "marks alone are none": ("Rain. ***", ["Rain."]),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences_are_split(case):
    text, expected = SENTENCES[case]
    assert parts(text, texts.sentences(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", []), ("a\n\nb", ["a", "b"]), ("a\r\n\r\nb\r\n", ["a", "b"]), ("\n\na\nb\n \n\n c ", ["a\nb", "c"])],
    ids=["empty", "blank line", "CRLF", "several blank lines"],
)
def test_paragraphs_stand_between_blank_lines(text, expected):
    assert parts(text, texts.paragraphs(text)) == expected


def test_words_are_runs_of_letters_and_digits():
    text = "it's 2 long-lived_ones, naïve"
    assert parts(text, texts.words(text)) == ["it", "s", "2", "long", "lived_ones", "naïve"]


def test_lines_come_without_their_breaks():
    assert parts("a\r\n\nb", texts.lines("a\r\n\nb")) == ["a", "", "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a", "a"), (None, ""), ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}], "a b"), (3, "")],
    ids=["string", "nothing", "parts", "neither"],
)
def test_a_messages_text_is_found(content, expected):
    assert texts.text_of({"content": content}) == expected


@given(st.text(alphabet=st.sampled_from('aB1.?!"”)*\r\n ,…。\ue000')))
def test_spans_are_in_order_and_inside(text):
    for spans in (texts.words(text), texts.sentences(text), texts.paragraphs(text)):
        flat = [place for span in spans for place in span]
        assert flat == sorted(flat)
        assert all(0 <= start < end <= len(text) for start, end in spans)
