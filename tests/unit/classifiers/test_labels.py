"""When two answers are the same, differ, or can't be told apart."""

from fractions import Fraction

import pytest

from classifiers.labels import LONGEST_CHARS, compare, final_number, normalised


@pytest.mark.parametrize(
    ("draft", "reference"),
    [
        ("Paris.", "paris"),
        ("**Paris**", "Paris"),
        ("The  capital\nis Paris!", "\u201cthe capital is Paris.\u201d"),
        ("- a red lamp", "red lamp"),
        ("\ufb01ne", "fine"),
        ("", ""),
    ],
    ids=["case, end", "markdown", "spaces, quotes", "list, article", "ligature", "both empty"],
)
def test_texts_that_differ_in_form_only_are_exactly_the_same(draft, reference):
    label = compare(draft, reference)
    assert (label.good, label.by) == (True, "exact")


@pytest.mark.parametrize(
    ("draft", "reference"),
    [
        ("...", "A"),
        ("A", "an"),
        ("2**3", "23"),
        ("__init__", "init"),
        ("> 5", "5"),
        ("The answer is not 42.", "The answer is 42."),
        ("It isn't 42.", "It is 42."),
        ("less than 5", "5"),
        ("9" * 6000, "8" * 6000),
    ],
    ids=lambda text: text[:16],
)
def test_texts_that_mean_something_else_are_not_called_the_same(draft, reference):
    assert not compare(draft, reference).good
    assert not compare(reference, draft).good


@pytest.mark.parametrize(
    ("draft", "reference"),
    [("A.", "a"), ("**two** words", "two words"), ("__two words__", "two words"), ("!!!", "!!!")],
)
def test_marks_around_words_and_at_ends_are_form(draft, reference):
    assert compare(draft, reference).by == "exact"


def test_numbers_that_both_texts_deny_are_compared():
    assert compare("It is not 42.", "No, it isn't 42.").good


@pytest.mark.parametrize(
    "piece", ["\n", "1\n", "**a ", "__a b ", "#### ", "answer is ", "\\boxed{", "\n1. ", "1/", " "]
)
@pytest.mark.timeout(30)  # against patterns that never end
def test_a_long_text_is_compared_to_its_end(piece):
    text = (piece * LONGEST_CHARS)[: LONGEST_CHARS - 1]
    assert compare(text, text).good


def test_a_text_beyond_the_limit_is_left_to_the_judge():
    text = "word " * LONGEST_CHARS
    assert compare(text, text).good is None
    assert compare(text, text, lambda draft, reference: True).by == "judge"


def test_marks_inside_a_text_count():
    assert normalised("x - 1") != normalised("x 1")


@pytest.mark.parametrize(
    ("draft", "reference"),
    [
        ("The lamp costs $45.", "It is $45."),
        ("2 lamps at $500 each.\n#### 1,000", "They cost 1000.00 dollars in all."),
        ("So \\boxed{\\frac{3}{4}} of it.", "The answer is 0.75"),
        ("The answer is 12.", "12 - 4 = 8, then 8 + 4 = 12 eggs"),
        ("She sold 3 and kept 9, so she has 9 left of 12.\nAnswer: 9", "#### 9"),
        ("It takes 1 1/2 hours? No: 7:30 in all", "We arrive at 7:30."),
        ("**20%** of them", "That makes 20 percent."),
        ("1. Take 4.\n2. Add 5.\nThe sum is 9", "9"),
        ("€1.5 million", "It was 1,500,000 euros."),
        ("-4 degrees", "It is \u22124."),
    ],
)
def test_equal_final_numbers_are_good(draft, reference):
    label = compare(draft, reference)
    assert (label.good, label.by) == (True, "numbers")


@pytest.mark.parametrize(
    ("draft", "reference"),
    [
        ("The lamp costs $54.", "It is $45."),
        ("0.33", "The answer is 1/3"),
        ("#### 42, and not 41", "It is 41."),
        ("7:30", "It leaves at 8:30."),
        ("4", "It is -4."),
        ("5", "#### 5,000"),
    ],
)
def test_other_final_numbers_are_not_good(draft, reference):
    label = compare(draft, reference)
    assert (label.good, label.by) == (False, "numbers")
    assert "expected" in label.reason


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 3\n#### 8", 8),
        ("the answer is 5 because 2 + 3 was asked", 5),
        ("it has 3,5 kg", Fraction(7, 2)),
        ("in 1999, 12 ships", 12),
        ("GPT-4 is a name, 7 a number", 7),
        ("version 1.2.", Fraction(6, 5)),
        ("2 + 3 = 5.", 5),
        ("5 - 3", 3),
        ("1/0", 0),
        ("\\frac{1}{0}", None),
        ("none at all", None),
    ],
)
def test_final_number_is_the_marked_or_the_last_one(text, number):
    assert final_number(text) == number


def test_a_number_before_the_last_sentence_is_no_answer_of_the_reference():
    label = compare("It was founded in 1887.", "It opened in 1899. Its founder was a teacher.")
    assert (label.good, label.by) == (None, None)


def test_a_draft_without_a_number_is_left_to_the_judge():
    assert compare("I can't say.", "It is 5.").good is None
    assert compare("It is five.", "It is 5.", lambda draft, reference: True).good


@pytest.mark.parametrize(
    ("found", "good"), [(True, True), (False, False), (0.7, True), (0.5, True), (0.2, False), (None, None)]
)
def test_judge_decides_the_rest(found, good):
    label = compare("Blue.", "Green.", lambda draft, reference: found)
    assert label.good is good
    assert label.by == (None if found is None else "judge")


def test_judge_is_asked_only_where_nothing_else_decides():
    def judge(draft, reference):
        raise AssertionError("asked")

    assert compare("4", "4.", judge).good
    assert not compare("It is 4", "It is 5", judge).good
    assert not compare(" ", "It is 5", judge).good


def test_judge_sees_draft_and_reference_in_this_order():
    seen = []
    compare("Blue.", "Green.", lambda *texts: seen.append(texts))
    assert seen == [("Blue.", "Green.")]


def test_judge_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"probability.*got 7"):
        compare("Blue.", "Green.", lambda draft, reference: 7)
