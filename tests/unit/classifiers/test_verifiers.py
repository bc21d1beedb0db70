"""Verifiers: each row says what the text is an example of."""

from typing import Literal

import pytest
from msgspec.structs import replace

from classifiers.api import DraftEvidence
from classifiers.verifiers import VERIFIERS, verify


def evidence(text, finish_reason: Literal["stop", "length", "unsettled", "deadline"] = "stop"):
    return DraftEvidence(
        messages=(), text=text, finish_reason=finish_reason, steps=(3,), converged=(True,), token_entropy=(0.1,),
        token_logprobs=(-0.1,), late_flips=0,
    )  # fmt: skip


RIGHT_SUMS = {
    "product": "3 x $15 = $45.",
    "sum and product in a list": "2 x 45 = 90, 3 x 10 = 30, 90 + 30 = 120. The total is $120.",
    "products bind before sums": "2 + 3 * 4 = 14",
    "difference": "31 - 12 = 19, 19 + 3 = 22",
    "thousands separators": "1,200 + 300 = 1,500.",
    "rounded quotient": "10 / 3 = 3.33",
    "whole quotient": "90 ÷ 15 = 6",
    "run-on steps": "2 x 3 = 6 + 4 = 10",
    "negative result is left alone": "x = 5 and y = 7",
    "percentage of something unnamed": "20% = 24, 120 - 24 = 96",
    "a date is no sum": "2024-03-12 is a Tuesday",
    "words in between": "Order 440 = yours, 3 mugs",
    "no text at all": "",
}
WRONG_SUMS = {
    "product": ("9 x $15 = $105", "9 x $15 = 135"),
    "sum": ("90 + 30 = 130, then 1 + 1 = 2", "90 + 30 = 120"),
    "difference": ("31 - 12 = 18.", "31 - 12 = 19"),
    "later step of a run-on": ("2 x 3 = 6 + 4 = 11", "6 + 4 = 10"),
    "quotient": ("90 / 15 = 7", "90 / 15 = 6"),
    "not a rounding": ("10 / 3 = 3.4", "10 / 3"),
    "nothing divides by zero": ("5 / 0 = 5", "something else than 0"),
}


@pytest.mark.parametrize("text", RIGHT_SUMS.values(), ids=RIGHT_SUMS.keys())
def test_right_sums_pass(text):
    assert VERIFIERS["arithmetic"](evidence(text)) == ""


@pytest.mark.parametrize(("text", "says"), WRONG_SUMS.values(), ids=WRONG_SUMS.keys())
def test_wrong_sums_fail_and_say_what_was_expected(text, says):
    assert says in VERIFIERS["arithmetic"](evidence(text))


@pytest.mark.parametrize("text", ["very very very good", "no, no, yes", "10 10 10 10 10 10", "a b a b c", "Yes."])
def test_texts_that_move_on_pass_the_repetition_check(text):
    assert VERIFIERS["repetition"](evidence(text)) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("the the the the", '"the" 4 times'),
        ("we sell mugs we sell mugs we sell mugs", "mugs"),
        ("So a b a b a b", "3 times"),
    ],
)
def test_circles_fail_the_repetition_check(text, says):
    assert says in VERIFIERS["repetition"](evidence(text))


@pytest.mark.parametrize("text", ["42", "Yes.", "```\nx = 1\n```", "It is 5:30"])
def test_finished_texts_pass_the_truncation_check(text):
    assert VERIFIERS["truncation"](evidence(text)) == ""


@pytest.mark.parametrize(
    ("text", "finish", "says"),
    [
        (" ", "stop", "empty"),
        ("fine.", "length", "token limit"),
        ("```py\nx", "stop", "code block"),
        ("First:", "stop", '":"'),
    ],
)
def test_unfinished_texts_fail_the_truncation_check(text, finish, says):
    assert says in VERIFIERS["truncation"](evidence(text, finish))


def test_every_check_is_reported_with_its_verdict():
    checks = {check.verifier: check.passed for check in verify(evidence("1 + 1 = 3"))}
    assert checks == {"settled": True, "arithmetic": False, "repetition": True, "truncation": True}


def test_a_draft_without_the_denoisers_signals_is_not_taken_on_trust():
    bare = replace(evidence("It costs $5."), steps=(), converged=(), token_entropy=(), token_logprobs=())
    assert VERIFIERS["settled"](bare) == "expected the denoiser's signals, got a draft without any"


@pytest.mark.parametrize(
    ("finish", "says"), [("unsettled", "got one that was given up"), ("deadline", "got the deadline")]
)
def test_a_draft_that_its_engine_ended_early_fails_first_for_that(finish, says):
    first = next(check for check in verify(evidence("2 + 2 = 5", finish)) if not check.passed)
    assert first.verifier == "settled"
    assert says in first.reason


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_other_drafts_are_settled(finish):
    assert VERIFIERS["settled"](evidence("It costs $5.", finish)) == ""
