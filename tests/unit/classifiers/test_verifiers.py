"""The registry, and the verifiers of plain text. Each row says what the text is an example of."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers import tasks
from classifiers.api import DraftEvidence
from classifiers.verifiers import CONSTRAINTS, HINTS, VERIFIERS, verify
from classifiers.verifiers.problem import Problem


def evidence(text, request="", **fields):
    return DraftEvidence(messages=({"role": "user", "content": request},), text=text, **fields)


def fault(name, found) -> Problem:
    """The problem that a verifier must find."""
    problem = VERIFIERS[name](found)
    assert problem is not None
    return problem


def marked(text, problem):
    """What the problem's span marks."""
    return text[slice(*problem.span)]


def test_every_verifier_is_reported_under_its_name_and_whether_it_decides():
    checks = {check.verifier: check for check in verify(evidence("1 + 1 = 3"))}
    assert list(checks) == list(VERIFIERS)
    assert [name for name, check in checks.items() if not check.passed] == ["arithmetic"]
    assert {name for name, check in checks.items() if not check.decisive} == HINTS == {"refusal", "copied", "numbers"}


def test_a_failed_check_carries_reason_and_span():
    text = "Well, 1 + 1 = 3"
    check = next(check for check in verify(evidence(text)) if not check.passed)
    assert check.reason == 'expected 2, got "1 + 1 = 3"'
    assert marked(text, check) == "1 + 1 = 3"


def test_what_the_conversation_asks_of_the_form_is_checked_and_decides():
    long = verify(evidence("One. Two. Three.", "Explain tides in at most two sentences."))
    short = verify(evidence("One. Two.", "Explain tides in at most two sentences."))
    assert [(check.verifier, check.passed, check.decisive) for check in long[len(VERIFIERS) :]] == [
        ("sentences", False, True)
    ]
    assert all(check.passed for check in short)
    assert "sentences" in CONSTRAINTS


def test_a_verifier_that_breaks_is_logged_and_left_out(monkeypatch, caplog):
    def broken(_):
        raise ZeroDivisionError

    monkeypatch.setitem(VERIFIERS, "arithmetic", broken)
    with caplog.at_level(logging.ERROR, "draftgate"):
        names = [check.verifier for check in verify(evidence("1 + 1 = 3"))]
    assert names == [name for name in VERIFIERS if name != "arithmetic"]
    assert "arithmetic" in caplog.text


def test_constraints_that_break_are_logged_and_left_out(monkeypatch, caplog):
    def broken(_):
        raise ZeroDivisionError

    monkeypatch.setattr(tasks, "read_constraints", broken)
    with caplog.at_level(logging.ERROR, "draftgate"):
        names = [check.verifier for check in verify(evidence("Fine.", "In one sentence, please."))]
    assert names == list(VERIFIERS)
    assert "constraints" in caplog.text


@pytest.mark.parametrize(
    ("finish", "says"), [("unsettled", "got one that was given up"), ("deadline", "got the deadline")]
)
def test_a_draft_that_its_engine_ended_early_fails_first_for_that(finish, says):
    first = next(check for check in verify(evidence("2 + 2 = 5", finish_reason=finish)) if not check.passed)
    assert first.verifier == "settled"
    assert says in first.reason


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_other_drafts_are_settled_even_without_the_denoisers_signals(finish):
    assert VERIFIERS["settled"](evidence("It costs $5.", finish_reason=finish)) is None


@pytest.mark.parametrize(
    "text",
    [
        "very very very good",
        "no, no, yes",
        "10 10 10 10 10 10",
        "a b a b c",
        "Yes.",
        "```\n[None, None, None, None, None]\nNone, None, None, None,\n```",
        "",
    ],
)
def test_texts_that_move_on_pass_the_repetition_check(text):
    assert VERIFIERS["repetition"](evidence(text)) is None


@pytest.mark.parametrize(
    ("text", "says", "where"),
    [
        ("So the the  the the end", '"the" 4 times', "the the  the the"),
        ("Here we sell mugs we sell mugs we sell mugs", '"we sell mugs" 3 times', "we sell mugs we sell mugs we sell mugs"),
        ("So a b a b a b", '"a b" 3 times', "a b a b a b"),
    ],
)  # fmt: skip
def test_circles_fail_the_repetition_check(text, says, where):
    problem = fault("repetition", evidence(text))
    assert says in problem.reason
    assert marked(text, problem) == where


@pytest.mark.parametrize(
    "text", ["42", "Yes.", "```\nx = 1\n```", "It is 5:30", "Try C++", "Ages 18+", "Sad :(", "SELECT 1;",
             "Use three backticks (```) to open a block.", "Thanks.\n\nBest regards,", "Sincerely,",
             "I need:\n\n- your order number\n- your email:", "- ```py\n  x\n  ```",
             "````markdown\n```python\nx\n````", "```md\n```py\nx\n```\n```"],
    ids=lambda text: text[-16:],
)  # fmt: skip
def test_finished_texts_pass_the_truncation_check(text):
    assert VERIFIERS["truncation"](evidence(text)) is None


@pytest.mark.parametrize(
    ("text", "finish", "says", "where"),
    [
        ("fine.", "length", "token limit", "."),
        ("Code:\n```py\nx", "stop", "code block", "```py\nx"),
        ("These are the first ones: \n", "stop", '":"', ":"),
        ("Buy eggs and some milk,", "stop", '","', ","),
        ("So 3 + 4 =", "stop", '"="', "="),
        ("It is (", "stop", '"("', "("),
    ],
)
def test_unfinished_texts_fail_the_truncation_check(text, finish, says, where):
    problem = fault("truncation", evidence(text, finish_reason=finish))
    assert says in problem.reason
    assert marked(text, problem) == where


def test_an_empty_text_fails_the_truncation_check():
    assert fault("truncation", evidence(" \n")).reason == "expected an answer, got an empty text"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("I'm sorry, but I can't help with that.", "I'm sorry, but I can"),
        ("As an AI language model, I have no body.", "As an AI"),
        ("Hello! I cannot provide legal advice.", "I cannot provide"),
        ("I don't have access to the internet.", "I don't have access"),
        ("Unfortunately, I am unable to open files.", "Unfortunately, I am unable to"),
        ("I must respectfully decline.", "I must respectfully decline"),
    ],
)
def test_a_refusal_is_noticed(text, where):
    problem = fault("refusal", evidence(text))
    assert marked(text, problem).strip() == where
    assert where in problem.reason


@pytest.mark.parametrize(
    "text",
    [
        "You can't divide by zero.",
        "I can't wait to see you!",
        "Sorry to hear that. Try turning it off.",
        "The AI winter began in 1974.",
        "Yes. " * 100 + "I cannot provide more.",
        "",
    ],
)
def test_an_answer_is_no_refusal(text):
    assert VERIFIERS["refusal"](evidence(text)) is None


STORY = (
    "A baker has a long counter with fresh rolls on it, and every morning the neighbours come by and take some of them home "
    "before the sun has even risen over the hills"
)


def test_an_answer_that_is_the_request_again_is_noticed():
    text = f"Well now. {STORY}. So there."
    problem = fault("copied", evidence(text, f"{STORY}. How come?"))
    assert problem.reason.startswith("expected an answer of its own words, got")
    assert marked(text, problem) == STORY


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        (STORY, f"Translate into German: {STORY}"),
        (STORY, f"Repeat the text word for word. {STORY}"),
        (STORY, f"Please correct the spelling: {STORY}"),
        ("A baker has a long counter", f"{STORY}. Who has a counter?"),
        ("They like it, I suppose, since rolls taste best when they are warm, and because nobody wants to queue later on, "
         "do they?", f"{STORY}. How come?"),
        (STORY, ""),
    ],
    ids=["translate", "repeat", "correct", "too short to tell", "own words", "nothing to copy"],
)  # fmt: skip
def test_other_answers_are_not_called_copied(text, request_):
    assert VERIFIERS["copied"](evidence(text, request_)) is None


APPLES = "Tom has 48 apples and gives 25% of them to each of fifteen friends for $1,250.50 in 36 crates."


@pytest.mark.parametrize(
    "text",
    [
        "He had 48 apples.",
        "He got 1250.5 dollars, or $1,250.50.",
        "He gave 0.25, or 25%, and kept 75% (0.75).",
        "15 friends and 3 crates.",
        "48 + 36 = 84, so 84 apples.",
        "13. first\n14. second",
        "See https://example.org/99 or\n```\nx = 77\n```",
        "An hour has 60 minutes, a year 365 days.",
        "",
    ],
    ids=["given", "separators", "percentage", "word", "worked out", "list", "link and code", "usual", "empty"],
)
def test_numbers_with_an_origin_pass(text):
    assert VERIFIERS["numbers"](evidence(text, APPLES)) is None


def test_a_number_from_nowhere_is_noticed():
    text = "He had 48 apples, and so 87 are left."
    problem = fault("numbers", evidence(text, APPLES))
    assert problem.reason == "expected numbers given or worked out, got 87"
    assert marked(text, problem) == "87"


def test_knowledge_is_not_asked_for_its_origin():
    assert VERIFIERS["numbers"](evidence("In 1912.", "When did the Titanic sink?")) is None


@settings(deadline=None, derandomize=True)
@given(text=st.text(max_size=300), request_=st.text(max_size=300))
def test_no_text_breaks_a_verifier(text, request_):
    for response_format in (None, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}):
        found = evidence(text, request_, response_format=response_format)
        for verifier in VERIFIERS.values():
            problem = verifier(found)
            if problem is not None and problem.span is not None:
                assert 0 <= problem.span[0] <= problem.span[1] <= len(text)


SIGNS = st.text(alphabet="0123456789 +-*/=×÷^().,%$<>{}\\xof\nab`", max_size=120)


@settings(deadline=None, derandomize=True)
@given(text=SIGNS, request_=SIGNS)
def test_no_text_of_signs_breaks_a_verifier(text, request_):
    for verifier in VERIFIERS.values():
        verifier(evidence(text, request_))


@pytest.mark.parametrize(
    "text",
    ["(" * 100_000, "9" * 100_000, "1 " * 50_000, "1=" * 50_000, "<<1=1" * 20_000, "I can't " * 12_000, "`" * 99_999,
     "\\" * 100_000, "=\n" * 50_000, "()" * 50_000 + "=", "a b c d e f " * 8_000],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_a_hostile_text_is_checked_in_bounded_work(text):
    assert len(verify(evidence(text, f"10 20 {text[:10_000]}"))) >= len(VERIFIERS) - len(HINTS)
