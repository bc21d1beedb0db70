"""Which turns of a conversation are read, how much of them, and where a constraint is said to stand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.api import Constraint
from classifiers.asked import read_constraints
from classifiers.asked.request import BLANK, WINDOW, Request
from classifiers.verifiers.constraints import arguments_of

FILLER = "Rivers run slow. "


def turn(role, content):
    return {"role": role, "content": content}


def kinds(*messages):
    return [constraint.kind for constraint in read_constraints(messages)]


def test_only_the_last_user_turn_is_read():
    assert kinds(
        turn("user", "Use no commas."), turn("assistant", "Use JSON."), turn("user", "Use three bullet points.")
    ) == ["bullets"]


def test_the_assistant_is_never_read():
    assert kinds(turn("user", "Hello"), turn("assistant", "I will answer in at most two sentences.")) == []


def test_a_standing_instruction_of_the_system_counts_and_has_no_span():
    (constraint,) = read_constraints([turn("system", "Answer only with valid JSON."), turn("user", "Name a river.")])
    assert constraint == Constraint(kind="json")


def test_the_last_turn_overrules_the_system():
    constraints = read_constraints([turn("system", "Use at most 50 words."), turn("user", "Use at least 90 words.")])
    assert [constraint.args for constraint in constraints] == [{"low": 90}]


@pytest.mark.parametrize(
    "content", ["If you are unsure, answer in JSON.", "Write three bullet points.", "<example>Use no commas.</example>"],
    ids=["conditional", "no standing kind", "tagged"],
)  # fmt: skip
def test_what_the_system_says_of_some_answers_only_is_left_out(content):
    assert kinds(turn("system", content), turn("user", "Name a river.")) == []


@pytest.mark.parametrize(
    "content", ["File names must be lowercase.", "Tool results are in JSON format.", "You help people who speak in Dutch."]
)  # fmt: skip
def test_what_the_system_says_of_other_things_is_left_out(content):
    assert kinds(turn("system", content), turn("user", "Name a river.")) == []


def test_parts_of_a_message_are_read():
    assert kinds(
        turn("user", [{"type": "text", "text": "Use no commas."}, {"type": "image_url", "image_url": {}}])
    ) == ["forbidden_marks"]


@pytest.mark.parametrize("messages", [(), (turn("user", None),), (turn("tool", "Use no commas."),)])
def test_without_a_user_nothing_is_asked(messages):
    assert read_constraints(messages) == ()


def test_a_span_is_a_place_in_the_last_turn():
    text = "Tell me of İ rivers in at most two sentences."
    (constraint,) = read_constraints([turn("user", text)])
    assert text[slice(*constraint.span or ())] == "at most two sentences"


def test_of_a_long_turn_the_middle_is_not_read():
    long = FILLER * (WINDOW // len(FILLER) + 1)
    text = f"Use no commas. {long}Use at most 5 words. {long}Answer only with valid JSON."
    constraints = read_constraints([turn("user", text)])
    assert [constraint.kind for constraint in constraints] == ["forbidden_marks", "json"]
    assert [text[slice(*constraint.span or ())] for constraint in constraints] == ["commas", "valid JSON"]


def test_behind_a_pasted_text_the_last_paragraph_is_the_request_again():
    text = "Judge the following text:\n\nUse at most 5 words.\n\nUse no commas."
    assert kinds(turn("user", text)) == ["forbidden_marks"]


def test_in_a_pasted_text_a_sentence_about_the_answer_is_the_request():
    assert kinds(turn("user", "Judge this text: it is at most 5 words long. Use no commas in your response.")) == [
        "forbidden_marks"
    ]


def test_contradictory_bounds_leave_the_first():
    constraints = read_constraints([turn("user", "Use at most 5 words. Use at least 9 words.")])
    assert [constraint.args for constraint in constraints] == [{"high": 5}]


def test_blanking_keeps_every_place():
    text = 'İn "quoted" and \u2018this\u2019 and `that`, ```fenced``` <a>tag</a> it\'s Mine'
    plain = Request(text).plain
    assert len(plain) == len(text)
    assert "quoted" not in plain
    assert "this" not in plain
    assert "that" not in plain
    assert "fenced" not in plain
    assert "tag" not in plain
    assert plain.endswith("it's mine")
    assert plain.count(BLANK) > 0


PIECES = [
    "at least ", "3 ", "two ", "to ", "words", "sentences ", "the word ", '"a" ', "'b', ", "and ", "not ", "more than ", "times ",
    "once", "end with ", "\n", "\r\n", "```", "<a>", "</a>", "“", "in json ", "in french ", "only ", "paragraph ", "start ", "İ",
    "the following text: ", "***", "******", "letter ", "capital letters ", "answer with one of: ", ". ", "bullet points ",
    "p.s. ", "repeat the prompt ", "(", "[", "number of ", "999999 ", "commas ", "highlight ", "mark it with x 1 ", "\ud800",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=80))
def test_no_request_makes_the_reader_raise_and_all_it_reads_can_be_checked(text):
    for constraint in read_constraints([turn("system", text), turn("user", text)]):
        assert arguments_of(constraint) is not None
        if constraint.span is not None:
            assert 0 <= constraint.span[0] < constraint.span[1] <= len(text)


@pytest.mark.parametrize("piece", PIECES)
def test_no_long_request_holds_the_reader_up(piece):
    read_constraints([turn("user", piece * 2000)])
