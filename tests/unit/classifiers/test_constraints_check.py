"""Checking constraints: what is refused, what holds for every kind and every text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.api import Constraint
from classifiers.verifiers.constraints import CONSTRAINTS, ConstraintError, arguments_of, check

NEEDED = {
    "keywords": {"words": ["a"]}, "forbidden": {"words": ["a"]}, "keyword_frequency": {"word": "a", "low": 1},
    "letter_frequency": {"letter": "a", "low": 1}, "forbidden_marks": {"marks": ","}, "required_marks": {"marks": "!"},
    "starts_with": {"phrase": "a"}, "ends_with": {"phrase": "a"}, "repeats_prompt": {"prompt": "a"},
    "one_of": {"options": ["a"]}, "paragraph_first_word": {"paragraph": 1, "word": "a"}, "language": {"code": "en"},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_an_empty_answer_meets_nothing(kind):
    for text in ("", " \r\n\t"):
        result = check(text, Constraint(kind=kind, args=NEEDED.get(kind, {})))
        assert not result.passed
        assert result.reason == "expected an answer, got an empty text"


@pytest.mark.parametrize(
    ("kind", "args", "said"),
    [
        ("wrods", {}, "expected a kind of constraint"),
        ("words", {"low": "2"}, "Expected `int`, got `str`"),
        ("words", {"low": -1}, ">= 0"),
        ("words", {"low": 3, "high": 2}, "expected low <= high, got 3 and 2"),
        ("words", {"most": 3}, "unknown field `most`"),
        ("keywords", {}, "missing required field `words`"),
        ("keywords", {"words": []}, "length >= 1"),
        ("forbidden", {"words": [""]}, "length >= 1"),
        ("letter_frequency", {"letter": "ab"}, "length <= 1"),
        ("language", {"code": "English"}, "matching regex"),
        ("paragraph_first_word", {"paragraph": 0, "word": "a"}, ">= 1"),
    ],
)
def test_what_does_not_fit_is_refused(kind, args, said):
    with pytest.raises(ConstraintError, match=said):
        check("a text", Constraint(kind=kind, args=args))


def test_defaults_are_filled_in():
    assert arguments_of(Constraint(kind="sections", args={"low": 2})) == {"marker": "Section", "low": 2, "high": None}


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("aZ1.,?!\"'*-#<>[]{}`P S:\r\n…é\u0130。\ue000\ud800")))
def test_no_text_makes_a_verifier_raise(text):
    for kind in CONSTRAINTS:
        result = check(text, Constraint(kind=kind, args=NEEDED.get(kind, {})))
        assert result.passed == (result.reason == "")
        if result.span is not None:
            assert 0 <= result.span[0] <= result.span[1] <= len(text)


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "!" * 50_000, "*" * 50_000, "\n" * 50_000 + "a", "<<" * 25_000, '{"a":' * 25_000]
)
def test_no_long_text_holds_a_verifier_up(text):
    for kind in CONSTRAINTS:
        check(text, Constraint(kind=kind, args=NEEDED.get(kind, {})))
