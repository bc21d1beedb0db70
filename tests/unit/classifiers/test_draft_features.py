"""Numbers that describe a draft: what each group says, and when it is missing."""

import random

import numpy as np
import pytest

from classifiers.api import Check, DraftEvidence, RefinerScore
from classifiers.draft_features import AGREEMENT, DENOISER, OPTIONAL, SCORE, SIZES, VERSION, draft_features
from classifiers.draft_text import TEXT, text_features
from classifiers.verifiers import HINTS

ASKED = "A pen costs $3 and a book costs $12. Anna buys 4 pens and twice as many books. How much does Anna pay?"
GOOD = "4 x 3 = 12. 4 x 2 = 8 books, 8 x 12 = 96. 12 + 96 = 108. So Anna pays $108."
NAMES = {"text": TEXT, "denoiser": DENOISER, "score": SCORE, "agreement": AGREEMENT}


def evidence(text=GOOD, asked=ASKED, **known):
    return DraftEvidence(messages=({"role": "user", "content": asked},), text=text, **known)


def told(group, checks=(), **known):
    """A group's features by name."""
    return dict(zip(NAMES[group], draft_features(evidence(**known), checks)[group].tolist(), strict=True))


def test_every_feature_has_a_name_of_its_own_and_the_version_names_what_text_holds():
    assert {group: len(set(names)) for group, names in NAMES.items()} == SIZES
    assert VERSION.startswith("draft-2")


def test_a_right_working_is_followed_to_its_answer():
    found = told("text")
    assert (
        found["answer is the last result"]
        == found["answer is the last sum's"]
        == found["answer is the largest result"]
        == 1
    )
    assert found["sums"] == 4
    assert (found["additions"], found["subtractions"], found["multiplications"], found["divisions"]) == (1, 0, 3, 0)
    assert found["numbers left out"] == found["operands from nowhere"] == found["unused results"] == 0
    assert found["numbers asked that are no operand"] == 0
    assert found["size of the answer"] == pytest.approx(np.log(109))
    assert found["conclusions"] == 1
    assert found["share of names"] == 1
    assert found["marked"] == 0
    assert found["place of the mark"] == -1


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("4 x 3 = 12. Anna pays $108.", "answer is the last result", 0),
        ("4 x 3 = 12. Anna pays $12.", "numbers asked that are no operand", 1),
        ("4 x 17 = 68.", "operands from nowhere", 1),
        ("4 x 3 = 12. 4 x 2 = 8. 9 x 12 = 108", "unused results", 1),
        ("3 / 4 = 0.75. That makes 0.75.", "decimals of the answer", 2),
        ("3 / 4 = 0.75. That makes 0.75.", "share of fractional results", 1),
        ("Anna pays 12 - 3 = 9", "share of subtractions", 1),
        ("Anna pays $96.\n#### 96", "numbers of the answer", 1),
        ("The answer is 96 dollars", "words of the answer", 2),
        ("<<4*3=12", "open notes", 1),
        ("Perhaps it is unclear.", "hedges", 2),
        ("Let n = 3 and solve.", "algebra", 3),
        ("She pays 10", "ends in a digit", 1),
        ("She pays 10", "share of names", 0),
        ("", "answer is the last sum's", -1),
    ],
)
def test_what_a_draft_lacks_shows(text, name, expected):
    assert told("text", text=text)[name] == expected


@pytest.mark.parametrize(
    ("asked", "text", "name"),
    [
        ("I had 7 cards and got 5 more.", "7 x 5 = 35", "more without an addition"),
        ("I have 5 fewer than 9 cards.", "9 + 5 = 14", "less without a subtraction"),
        ("If there are 3 dogs and 2 cats, how many?", "3", "share of numbers left out"),
    ],
)
def test_what_was_asked_and_not_done_shows(asked, text, name):
    assert told("text", asked=asked, text=text)[name] > 0
    assert told("text", asked=asked, text="7 + 5 = 12, 9 - 5 = 4, 3 + 2 = 5")[name] == 0


def test_hints_of_verifiers_count_and_decisive_checks_do_not():
    checks = [
        Check(verifier="numbers", passed=False, decisive=False),
        Check(verifier="copied", passed=True, decisive=False),
        Check(verifier="tone", passed=False, decisive=False),
        Check(verifier="refusal", passed=False),
    ]
    found = told("text", checks)
    assert [found[name] for name in ("hint: numbers", "hint: copied", "hint: refusal")] == [1, 0, 0]
    assert len([name for name in found if "hint" in name]) == len(HINTS)


def test_groups_are_there_only_when_their_evidence_is():
    assert list(draft_features(evidence(), ())) == ["text"]
    entropies_without_steps = evidence(token_entropy=(0.1,))
    scores_that_do_not_fit = evidence(score=RefinerScore(token_logprobs=(-1.0,), token_ranks=(), agreeing_prefix=0))
    assert list(draft_features(entropies_without_steps, ())) == ["text"]
    assert list(draft_features(scores_that_do_not_fit, ())) == ["text"]
    everything = evidence(
        steps=(3,), token_entropy=(0.1,), others=("b",), score=RefinerScore(token_logprobs=(-1.0,), token_ranks=(2,), agreeing_prefix=0)
    )  # fmt: skip
    assert set(draft_features(everything, ())) == {"text", *OPTIONAL}


def test_the_denoiser_tells_its_doubts():
    found = told(
        "denoiser",
        steps=(4, 8),
        converged=(True, False),
        token_entropy=(0.0, 0.05, 0.2, 0.9),
        token_logprobs=(-0.1, -2.0, -0.3, 0.0),
        late_flips=2,
    )
    assert (found["steps a canvas"], found["most steps of a canvas"], found["share converged"]) == (6, 8, 0.5)
    assert (found["largest entropy"], found["second largest entropy"]) == pytest.approx((0.9, 0.2))
    assert (found["share of tokens above 0.1 nat"], found["share of tokens above 0.01 nat"]) == (0.5, 0.75)
    assert (found["smallest log-probability"], found["mean log-probability"]) == pytest.approx((-2.0, -0.6))
    assert found["late flips"] == pytest.approx(np.log(3))
    assert found["tokens"] == pytest.approx(np.log(5))


def test_the_refiner_tells_where_it_would_have_gone_another_way():
    score = RefinerScore(token_logprobs=(-0.1, -0.2, -3.0, -0.5), token_ranks=(0, 0, 6, 1), agreeing_prefix=2)
    found = told("score", score=score)
    assert (found["smallest log-probability"], found["second smallest log-probability"]) == (-3.0, -0.5)
    assert (found["share of first choices"], found["tokens that are no first choice"]) == (0.5, 2)
    assert (found["share of agreeing prefix"], found["log-probability behind the prefix"]) == (0.5, -3.0)
    assert found["largest rank"] == pytest.approx(np.log(7))


def test_candidates_agree_in_text_numbers_and_answers():
    found = told("agreement", text="It costs **$12**.", others=("it costs $12", "It is 12", "No idea at all"))
    assert found["candidates"] == 3
    assert found["share of equal texts"] == pytest.approx(1 / 3)
    assert found["share of equal numbers"] == found["share of equal last numbers"] == pytest.approx(2 / 3)
    assert found["least share of common words"] == 0
    assert found["spread of lengths"] > 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "= = =",
        "1/0 = 0",
        "9" * 9000,
        "\u0663 + \u0664 = \u0667",
        "\U0001f600" * 50,
        "<<",
        "a\x00b",
        "####",
        "1,,," * 9,
    ],
)
@pytest.mark.parametrize("asked", ["", "9" * 400, "How many?"])
def test_odd_texts_have_finite_features(text, asked):
    row = text_features(evidence(text=text, asked=asked), ())
    assert row.shape == (len(TEXT),)
    assert np.isfinite(row).all()


def test_random_signs_have_finite_features():
    rng = random.Random(3)
    for _ in range(300):
        text, asked = ("".join(rng.choices("0123456789+-*/=<>#().,$% \n\\ax", k=80)) for _ in range(2))
        assert np.isfinite(text_features(evidence(text=text, asked=asked), ())).all()


def test_a_conversation_without_messages_has_features():
    assert np.isfinite(text_features(DraftEvidence(messages=(), text="hello"), ())).all()
