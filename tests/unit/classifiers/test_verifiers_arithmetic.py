"""Arithmetic: each row says what the text is an example of."""

import math

import pytest

from classifiers.api import DraftEvidence
from classifiers.verifiers.arithmetic import arithmetic, equations

HOLDS = {
    "product": "3 x $15 = $45.",
    "sum and product in a list": "2 x 45 = 90, 3 x 10 = 30, 90 + 30 = 120. The total is $120.",
    "products bind before sums": "2 + 3 * 4 = 14",
    "brackets": "(3+4)*2 = 14",
    "brackets multiply": "2(3 + 4) = 14, (2)(3) = 6",
    "power": "2^3 = 8, 3² + 4² = 25, 2^3^2 = 512, -2^2 + 8 = 4",
    "thousands separators": "1,200 + 300.50 = 1,500.50",
    "rounded quotient": "10 / 3 = 3.33",
    "cut quotient": "20 / 3 = 6.66",
    "whole quotient, rounded up": "22 / 4 = 6",
    "printed by a program": "0.1 + 0.2 = 0.30000000000000004",
    "calculator note": "48/2 = <<48/2=24>>24",
    "run-on steps": "2 x 3 = 6 + 4 = 10",
    "chain": "2 + 3 + 4 = 5 + 4 = 9",
    "share of something": "20% of 50 = 10, 1/2 of 20 = 10",
    "percentages of one whole": "100% - 30% = 70%",
    "percentage taken off": "$200 - 20% = $160",
    "percentage as a result": "5 / 20 = 25%",
    "units": "3 cups * 20 chickens = 60 cups",
    "rates": "80 GB / 2 GB/minute = 40 minutes, 5 hours * $12/hour = $60",
    "notes in brackets": "160 (Oslo) + 80 (Rome) = 240",
    "LaTeX": r"\( 3 \times 4 = 12 \), $\frac{1}{2} \cdot 10 = 5$, 12 \div 4 = 3",
    "mixed numbers": "7 / 2 = 3 1/2, 1 1/2 + 2 = 3.5",
    "unicode minus": "10 − 4 = 6",
    "negative numbers": "-3 + 5 = 2, 7 - -2 = 9",
    "list signs": "- 3 + 5 = 8\n* 3 + 5 = 8\n1. 3 + 5 = 8\n1) 3 + 5 = 8\n- Sum: 3 + 5 = 8",
    "bold": "**3 + 5 = 8**",
    "words for signs": "5 times 3 = 15, 5 plus 3 = 8",
    "degrees": "90° + 45° = 135°",
    "fraction as a result": "1/4 + 1/2 = 3/4",
}
UNREADABLE = {
    "number given to a name": "x = 5 and y = 7",
    "percentage of something unnamed": "20% = 24",
    "date": "2024-03-12 is a Tuesday",
    "words in between": "Order 440 = yours, 3 mugs",
    "words that multiply": "half of 20 + 2 = 12, twice 5 + 3 = 13",
    "words that add": "the sum of 2 and 3 + 4 = 9",
    "variables": "2x + 3 = 7, 5 y + 1 = 2, x - 3 + 5 = 9, 2 + 3 = 5 + x",
    "large numbers in words": "3 million + 2 million = 5 million, 4 dozen + 2 = 50",
    "converted units": "30 minutes + 1 hour = 90 minutes, 2 * 60 minutes = 2 hours, 12 inches = 1 foot",
    "units that don't add": "3 shirts + 2 hats = $80",
    "two units": "5 feet + 6 inches = 5 feet 6 inches",
    "range of hours": "9-5 = 8 hours",
    "clock": "9:30 + 2:15 = 11:45",
    "function": "f(3) + 2 = 9, log(100) + 3 = 5",
    "other signs": "5! + 1 = 121, √16 + 2 = 6, |−5| + 1 = 6",
    "relations": "2 + 3 != 6, 2 + 3 >= 4, 2 + 3 == 6",
    "about": "10 + 0.4 ≈ 10",
    "question": "Is 2 + 2 = 5?",
    "denial": "It is not true that 2 + 2 = 5.",
    "binary": "In binary, 1 + 1 = 10.",
    "modulo": "Modulo 7, 5 + 4 = 2.",
    "code": "```\ny = 2 + 2 = 5\n``` and `2 + 2 = 5`",
    "link": "https://example.org/?q=1+1=3",
    "decimal commas": "1,5 * 2 = 3 and 2,5 + 2,5 = 5",
    "points between thousands": "1.200 + 300 = 1.500",
    "versions": "v1.2.3 + 1 = 2, 192.168.0.1 + 1 = 3",
    "vectors": "[1, 2] + [3, 4] = [4, 6]",
    "left out numbers": "1 + 2 + ... + 10 = 55",
    "ambiguous division": "12 / (1 - 3/5) = 12 / 2/5",
    "corrected in the next sentence": "You wrote 3 x 4 = 13. The right result is 12.",
    "corrected in the next line": "3 x 4 = 13\nIt should be 12.",
    "rate in other units": "60 km / 45 min = 80 km/h, 60 miles / 30 minutes = 120 mph, 6 km / 30 min = 12 km per hour",
    "significant figures": "1234 × 2 = 2500 (two significant figures)",
    "rounded": "That is about 330 * 0.2 = 70.",
    "clock in words": "On a 12-hour clock, 9 + 5 = 2.",
    "no text at all": "",
}
WRONG = {
    "product": ("A: 9 x $15 = $105.", 135, "9 x $15 = $105"),
    "sum": ("90 + 30 = 130, then 1 + 1 = 2", 120, "90 + 30 = 130"),
    "difference": ("31 - 12 = 18.", 19, "31 - 12 = 18"),
    "later step of a run-on": ("2 x 3 = 6 + 4 = 11", 10, "6 + 4 = 11"),
    "quotient": ("90 / 15 = 7", 6, "90 / 15 = 7"),
    "not a rounding": ("10 / 3 = 3.4", 10 / 3, "10 / 3 = 3.4"),
    "calculator note": ("48/2 = <<48/2=25>>24", 24, "48/2=25"),
    "power": ("2^3 = 9", 8, "2^3 = 9"),
    "share": ("20% of 50 = 12", 10, "20% of 50 = 12"),
    "units": ("3 cups * 20 chickens = 61 cups", 60, "3 cups * 20 chickens = 61"),
    "fraction": (r"\frac{1}{2} \times 10 = 6", 5, r"\frac{1}{2} \times 10 = 6"),
    "mixed number": ("7 / 2 = 3 1/4", 3.5, "7 / 2 = 3 1/4"),
    "behind words": ("So the total is 5 + 6 = 12 apples", 11, "5 + 6 = 12"),
    "list item": ("- 3 + 5 = 9", 8, "3 + 5 = 9"),
    "name before it": ("Total = 3 + 4 = 8", 7, "3 + 4 = 8"),
    "behind it the same wrong result": ("9 x 15 = 105. So the correct answer is 105.", 135, "9 x 15 = 105"),
    "rate": ("120 km / 2 hours = 70 km/hour", 60, "120 km / 2 hours = 70"),
    "rounded elsewhere": ("It takes about an hour.\n2 + 2 = 5", 4, "2 + 2 = 5"),
    "currency": ("$4.50 + $1.50 = $7", 6, "$4.50 + $1.50 = $7"),
}


@pytest.mark.parametrize("text", HOLDS.values(), ids=HOLDS.keys())
def test_right_equations_are_read_and_pass(text):
    found = equations(text)
    assert found
    assert all(equation.holds for equation in found)
    assert arithmetic(DraftEvidence(messages=(), text=text)) is None


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_open_is_not_read(text):
    assert equations(text) == []


@pytest.mark.parametrize(("text", "value", "written"), WRONG.values(), ids=WRONG.keys())
def test_wrong_equations_fail_with_the_right_value_and_their_place(text, value, written):
    wrong = next(equation for equation in equations(text) if not equation.holds)
    assert wrong.left == pytest.approx(value)
    problem = arithmetic(DraftEvidence(messages=(), text=text))
    assert problem is not None
    assert problem.reason == f'expected {value:.12g}, got "{written}"'
    assert problem.span is not None
    assert text[slice(*problem.span)] == written


def test_an_equation_says_what_was_worked_out_and_what_was_shown():
    first, second = equations("3 x $5 = $15, so 2 + 2 = 5")
    assert (first.left, first.shown, first.holds) == (15, 15, True)
    assert (second.left, second.shown, second.holds, second.span) == (4, 5, False, (17, 26))


@pytest.mark.parametrize("text", ["5 / 0 = 5", "1/0 = 3", "2 / (3 - 3) = 1"])
def test_nothing_divides_by_zero(text):
    assert math.isnan(equations(text)[0].left)
    problem = arithmetic(DraftEvidence(messages=(), text=text))
    assert problem is not None
    assert problem.reason == f'expected no division by 0, got "{text}"'


@pytest.mark.parametrize(
    "text",
    ["9**9**9 = 1", "9^9^9 = 1", "((9^64)^64)^64 = 3", "2^-99999 = 0", "2^0.5 = 1", f"{'9' * 40} + 1 = 2",
     f"{'(' * 30}1 + 1{')' * 30} = 3", f"{'1 + ' * 100}1 = 7"],
    ids=["tower of stars", "tower", "tower of brackets", "tiny", "root", "digits", "brackets", "terms"],
)  # fmt: skip
def test_what_is_too_large_is_not_worked_out(text):
    assert equations(text) == []
