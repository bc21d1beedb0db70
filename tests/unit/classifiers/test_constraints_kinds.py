"""Every kind of constraint: a text that meets it, one that doesn't, what is said then and where it shows."""

import pytest

from classifiers.api import Constraint
from classifiers.verifiers.constraints import CONSTRAINTS, check

PARTS = "first\n***\nsecond"
KINDS = [
    # kind, arguments, passes, fails, got, where it shows
    ("characters", {"high": 5}, " four ", "sixsix", "got 6", "x"),
    ("characters", {"low": 5}, "seven 7", "four", "got 4", None),
    ("words", {"high": 2}, "two words", "now three words", "got 3", "words"),
    ("words", {"low": 3}, "now three words", "two words", "expected at least 3 words, got 2", None),
    ("sentences", {"low": 1, "high": 2}, "One. Two.", "One. Two. Three.", "expected 1 to 2 sentences, got 3", "Three."),
    ("sentences", {"high": 1}, "Dr. Moss came.", "He came. She left.", "at most 1", "She left."),
    ("paragraphs", {"low": 2, "high": 2}, "a\n\nb", "a\nb", "expected exactly 2 paragraphs, got 1", None),
    ("paragraphs", {"high": 1}, "a\nb", "a\n\nb", "got 2", "b"),
    ("paragraphs", {"low": 2, "separator": "***"}, PARTS, "first\n\nsecond", "got 1", None),
    ("paragraphs", {"low": 2, "separator": "***"}, f"***{PARTS}***", "a***\n***b", 'between each two "***"', "\n"),
    ("keywords", {"words": ["cat", "Dog"]}, "Cats and dogs", "a cat", 'got none of "Dog"', None),
    ("keywords", {"words": ["a+b"]}, "so A+B", "aab", "a+b", None),
    ("forbidden", {"words": ["cat"]}, "cats", "no Cat here", 'expected no "cat", got "Cat"', "Cat"),
    ("forbidden", {"words": ["C++"]}, "C", "in C++ now", "C++", "C++"),
    ("keyword_frequency", {"word": "moss", "high": 1}, "Moss", "moss, mossy", "got 2", "moss"),
    ("letter_frequency", {"letter": "E", "low": 2}, "Eve", "over", 'expected at least 2 times "E", got 1', None),
    ("letter_frequency", {"letter": "#", "high": 1}, "#a", "#a #b", "got 2", "#"),
    ("lowercase", {}, "all small, 1st", "all Small", 'got "S"', "S"),
    ("lowercase", {}, "small", "123", "no letter that has a case", None),
    ("uppercase", {}, "ALL CAPITAL", "ALL CAPITAl", 'got "l"', "l"),
    ("capital_words", {"low": 2, "high": 2}, "GO to THE hill", "GO", "got 1", None),
    ("capital_words", {"low": 3}, "WE DON'T", "WE WILL-GO", "got 2", None),
    ("capital_words", {"high": 1}, "I'm here: OK-ish", "I AM", "got 2", "AM"),
    ("forbidden_marks", {"marks": ","}, "no such mark", "one, two", 'expected no ","', ","),
    ("forbidden_marks", {"marks": "!?"}, "calm.", "calm?", 'expected no "?"', "?"),
    ("required_marks", {"marks": "!"}, "Go!", "Go.", 'expected a "!"', None),
    ("starts_with", {"phrase": "Dear"}, '  "dear friend', "My dear", 'expected "Dear" at the start, got "My dear"', "My dear"),
    ("ends_with", {"phrase": "Bye."}, '"Well, bye."\n', "Bye. Or not", 'expected "Bye." at the end', "Bye. Or not"),
    ("quoted", {}, ' "all of it" ', '"part" of it', "double quotes", None),
    ("quoted", {}, '""', '"', "double quotes", None),
    ("postscript", {"marker": "P.S."}, "Bye\np. s. one more", "Bye\nPS one more", 'expected "P.S."', None),
    ("postscript", {"marker": "P.P.S"}, "Bye\nP. P.S: x", "Bye\nP.S. x", 'expected "P.P.S"', None),
    ("paragraph_first_word", {"paragraph": 2, "word": "Then"}, 'a\n\n"Then, b', "a\n\nAnd then", 'got "And"', "And"),
    ("paragraph_first_word", {"paragraph": 1, "word": "a", "paragraphs": 2}, "A.\n\nb", "a", "expected exactly 2", None),
    ("paragraph_first_word", {"paragraph": 3, "word": "a"}, "b\n\nb\n\na", "a", "expected text in paragraph 3", None),
    ("repeats_prompt", {"prompt": "Why Rain?"}, " why rain? Because", "Because", "expected the prompt first", None),
    ("bullets", {"low": 2, "high": 2}, "So:\n* a\n - b", "* a\n**b**", "expected exactly 2 bullet points, got 1", None),
    ("bullets", {"low": 2}, "• a\n • b", "• a\nb • c", "got 1", None),
    ("bullets", {"high": 1}, "* a", "* a\n* b", "got 2", "* b"),
    ("items", {"low": 3}, "1. a\n2) b\n• c", "1. a\n2.5 b\n--", "got 1", None),
    ("sections", {"marker": "Part", "low": 2}, "Part 1 x\nPart 2 y", "Part one", 'begin with "Part"', None),
    ("title", {}, "<<Rain>>\nIt fell.", "<< >>\n<Rain>", "double angular brackets", None),
    ("highlights", {"low": 2}, "*a* and **b**", "*a* and ** **", "got 1", None),
    ("placeholders", {"low": 2}, "[name] at [place]", "[name] at [\n]", "got 1", None),
    ("two_responses", {}, "a\n******\nb\n", "a ****** a", "got the same twice", None),
    ("two_responses", {}, "******a******b", "a******b******c", "got 3", None),
    ("two_responses", {}, "a****** b", "a************b", "expected an answer between", None),
    ("one_of", {"options": ["Yes.", "No."]}, "I say: No.", "I say: no", "got none of them", None),
    ("json", {}, '```json\n{"a": [1]}\n```', '{"a": 1,}', "got: ", "}"),
    ("json", {}, "3", "See: {}", "expected JSON", "S"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "args", "passes", "fails", "got", "shown"), KINDS)
def test_a_text_meets_it_or_the_reason_says_why_not(kind, args, passes, fails, got, shown):
    constraint = Constraint(kind=kind, args=args)
    assert check(passes, constraint).passed
    failed = check(fails, constraint)
    assert not failed.passed
    assert failed.verifier == kind
    assert failed.reason.startswith("expected ")
    assert got in failed.reason
    if shown is None:
        assert failed.span is None
    else:
        assert failed.span is not None
        assert fails[slice(*failed.span)].strip(" ") == shown or fails[failed.span[0] :].startswith(shown)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The river was named by the people who lived at its banks."),
        ("de", "Der Fluss wurde von den Menschen benannt, die an seinen Ufern lebten."),
        ("hi", "नदी का नाम उसके किनारे रहने वाले लोगों ने रखा था।"),
        ("en", "THE RIVER WAS NAMED BY THE PEOPLE WHO LIVED AT ITS BANKS."),
    ],
    ids=["English", "German", "Hindi", "all capitals"],
)
def test_the_language_of_a_text_is_recognised(code, text):
    assert check(text, Constraint(kind="language", args={"code": code})).passed
    failed = check(text, Constraint(kind="language", args={"code": "fr"}))
    assert failed.reason == f'expected the language "fr", got "{code}"'


def test_a_text_without_letters_is_in_every_language():
    assert check("42", Constraint(kind="language", args={"code": "de"})).passed


def test_a_word_that_the_detector_is_unsure_of_is_in_every_language():
    assert check("Yes.", Constraint(kind="language", args={"code": "en"})).passed
    assert check("Yes.", Constraint(kind="language", args={"code": "sw"})).passed


def test_a_few_letters_that_the_detector_is_sure_of_count():
    assert not check("नहीं", Constraint(kind="language", args={"code": "en"})).passed


def test_the_same_text_gets_the_same_language_each_time():
    short = Constraint(kind="language", args={"code": "en"})
    assert len({check("Ja na no ta", short).reason for _ in range(8)}) == 1


def test_every_kind_has_its_examples():
    assert {kind for kind, *_ in KINDS} | {"language"} == set(CONSTRAINTS)
