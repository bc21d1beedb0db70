"""Sums that stand in the text are worked out again.

An equation is read only where nothing about it is open: a variable, a clock time, a range, a converted unit, or a word that
may belong to the sum ("half of 20 = 10") leaves a side unknown, and what is unknown is never called wrong.
"""

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from classifiers.api import DraftEvidence, Span
from classifiers.verifiers.problem import Problem
from classifiers.verifiers.sums import Token, Unreadable, stretches, values

DENIAL_CHARS = 200  # so far before an equation a word may deny it, and so far behind it another result may
ROUNDING_CHARS = 40  # so far from an equation a word may say that it is rounded
FLOAT_ERROR = Fraction(1, 10**9)  # relative; results that a program printed

_SKIPPED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\b\w{1,20}://\S+", re.DOTALL)
_LINE = re.compile(r"^[^\n=]*=[^\n]*", re.MULTILINE)
_LIST_SIGN = re.compile(r"\s*[*+-]\s")
_CALCULATION = re.compile(r"<<([^<>\n]*)>>")  # GSM8K's calculator notes
_OTHER_RULES = re.compile(
    r"\b(?:binary|octal|hexadecimal|base[- ]?\d+|mod|modulo|modular|xor|clock|matri(?:x|ces))\b", re.I
)
_DENIED = re.compile(
    r"\b(?:wrong|incorrect(?:ly)?|false|mistake(?:n|nly|s)?|errors?|impossible|not|instead|rather)\b|n['\u2019]t\b",
    re.I,
)
_CORRECTED = re.compile(
    r"\b(?:right|correct(?:ly)?|actual(?:ly)?|real|true|instead|should|must|no|ignor(?:es?|ed|ing)|forg[eo]t(?:s|ting)?)\b",
    re.I,
)
_ROUNDED = re.compile(
    r"\b(?:significant (?:figures?|digits?)|sig\.? ?figs?|about|approximately|approx|roughly|around|rounded|rounding|nearly|almost|estimated?)\b",
    re.I,
)
_NUMBER = re.compile(r"\d[\d,]{0,30}(?:\.\d{1,30})?")
_OPEN_WORD = re.compile(
    r"[a-z]|an|half|halves|twice|double|triple|thrice|quarter|third|fourth|fifth|tenth|of|times|plus|minus|by|and|or|percent"
    r"|less|more|than|divided|multiplied|squared|cubed|root|sqrt|log|ln|sin|cos|tan|exp|over|from|to|per|until|through|every"
    r"|each|add|subtract",
    re.IGNORECASE,
)  # before a sum: it may begin further left
_SAME_KIND = (
    "millisecond ms second sec minute min hour hr h day week month year yr decade century",
    "mm cm centimeter centimetre meter metre km kilometer kilometre inch in foot feet ft yard yd mile mi",
    "mg gram g kg kilogram ton tonne ounce oz pound lb",
    "ml milliliter liter litre l teaspoon tsp tablespoon tbsp cup pint quart gallon",
    "$ cent dollar penny pennie nickel dime quarter buck",
    "kb mb gb tb byte bit",
    "watt w kilowatt kw kwh joule j kj calorie kcal",
)
_RATES = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour"), "kmph": ("km", "hour")}
_KIND = {unit: kind for kind, units in enumerate(_SAME_KIND) for unit in units.split()}


class Equation(NamedTuple):
    """A sum in a text and the result that is shown for it."""

    left: float  # what the sum comes to; NaN when it divides by zero
    shown: float
    holds: bool
    span: Span  # of both sides


def arithmetic(evidence: DraftEvidence) -> Problem | None:
    """The first equation that doesn't hold."""
    wrong = next((equation for equation in equations(evidence.text) if not equation.holds), None)
    if wrong is None:
        return None
    written = evidence.text[slice(*wrong.span)]
    if math.isnan(wrong.left):
        return Problem(f'expected no division by 0, got "{written}"', wrong.span)
    return Problem(f'expected {wrong.left:.12g}, got "{written}"', wrong.span)


def equations(text: str) -> list[Equation]:
    r"""Every equation `sum = number` that can be read without doubt, in the order of the text.

    Percentages, units behind numbers, mixed numbers, powers and LaTeX's `\frac`, `\times`, `\div` are understood. A result
    is right when the value, rounded or cut to the result's decimals, equals it; a whole one also when it is rounded up. In
    a run-on `2 x 3 = 6 + 4 = 10` each `=` may look at the number right behind it. Code, links, and lines that deny something
    are left out, and so is the whole text when it calculates by other rules (binary, modulo).
    """
    if "=" not in text or _OTHER_RULES.search(text):
        return []
    prose = _SKIPPED.sub(_blank, text)
    notes = [note.span(1) for note in _CALCULATION.finditer(prose)]
    prose = _CALCULATION.sub(_blank, prose)
    lines = [line.span() for line in _LINE.finditer(prose)]
    found = [equation for span in lines for equation in _equations(prose, span)]
    found += [equation for span in notes for equation in _equations(text, span)]
    return sorted(found, key=lambda equation: equation.span)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _equations(text: str, span: Span) -> Iterator[Equation]:
    for stretch in stretches(text, span):
        sides = _sides(stretch)
        begin, end = stretch[0].span[0], stretch[-1].span[1]
        if len(sides) == 1 or _DENIED.search(text, max(span[0], begin - DENIAL_CHARS), end):
            continue
        sign = _LIST_SIGN.match(text, span[0], begin + 2)
        if sign and sign.end() == begin + 2:
            sides[0] = sides[0][1:]
        for number, (left, right) in enumerate(pairwise(sides)):
            worked, shown = _tail(left, first=number == 0), _head(right)
            if not worked or not shown or _is_range(text, worked) or not _units_agree(worked, shown):
                continue
            equation = _compared(worked, shown)
            if equation is not None and (equation.holds or not _is_meant(text, equation)):
                yield equation


def _is_meant(text: str, equation: Equation) -> bool:
    """Does the text know that this equation doesn't hold: does it say that it is rounded, or give the right result next?"""
    begin, end = equation.span
    line = text[max(0, begin - ROUNDING_CHARS) : end + ROUNDING_CHARS]
    at = min(begin, ROUNDING_CHARS)
    before, behind = line[:at].rpartition("\n")[2], line[at + end - begin :].partition("\n")[0]
    if _ROUNDED.search(before.rpartition(". ")[2]) or _ROUNDED.search(behind.partition(". ")[0]):
        return True
    following = text[end : end + DENIAL_CHARS]
    word = _CORRECTED.search(following)
    if word is None or math.isnan(equation.left):
        return False
    numbers = (float(number[0].replace(",", "")) for number in _NUMBER.finditer(following, word.start()))
    return any(math.isclose(number, abs(equation.left), rel_tol=1e-3) for number in numbers)


def _sides(stretch: list[Token]) -> list[list[Token]]:
    sides: list[list[Token]] = [[]]
    for token in stretch:
        if token.kind == "equals":
            sides.append([])
        else:
            sides[-1].append(token)
    return sides


def _tail(side: list[Token], *, first: bool) -> list[Token]:
    """The sum that ends a side; [] where none does or it may begin further left."""
    begin = next((at for at in range(len(side), 0, -1) if side[at - 1].kind == "word"), 0)
    begin += _behind_lone_bracket(side[begin:])
    run = side[begin:]
    if begin and run and (run[0].kind == "operator" or _OPEN_WORD.fullmatch(side[begin - 1].text)):
        return []
    is_sum = sum(token.kind == "number" for token in run) > 1
    return run if is_sum or not (first or begin) else []


def _behind_lone_bracket(tokens: list[Token]) -> int:
    """Where the tokens behind the last bracket without a partner begin."""
    opened: list[int] = []
    begin = 0
    for at, token in enumerate(tokens):
        if token.kind == "open":
            opened.append(at)
        elif token.kind == "close" and opened:
            opened.pop()
        elif token.kind == "close":
            begin = at + 1
    return max(begin, opened[-1] + 1) if opened else begin


def _head(side: list[Token]) -> list[Token]:
    """The sum or number that begins a side; [] where none does or it may go on: `5 feet 6`, `2 hours and 30 minutes`."""
    depth = 0
    end = len(side)
    for at, token in enumerate(side):
        depth += (token.kind == "open") - (token.kind == "close")
        if token.kind == "word" or depth < 0:
            end = at
            break
    behind = side[end + 1 : end + 3]
    goes_on = [token.kind for token in behind[:1]] == ["number"] or [token.text for token in behind[:1]] == ["and"]
    return [] if goes_on else side[:end]


def _is_range(text: str, run: list[Token]) -> bool:
    """Is this rather `9-5` than a difference: no space around its sign, but around the `=`?"""
    return len(run) == 3 and run[1].text == "-" and run[1].tight and run[2].tight and text[run[2].span[1] :][:1] == " "


def _units_agree(worked: list[Token], shown: list[Token]) -> bool:
    """May the numbers be compared as they are? Not when minutes became hours, or a sum of apples and pears dollars."""
    left = {part for token in worked for unit in token.units for part in _RATES.get(unit, (unit,))}
    right = {part for token in shown[:1] for unit in token.units for part in _RATES.get(unit, (unit,))}
    kinds = [_KIND[unit] for unit in left | right if unit in _KIND]
    if len(kinds) > len(set(kinds)):
        return False
    if len(worked) == 1 and left != right:
        return False
    adds = any(token.kind == "operator" and token.text in "+-" for token in worked)
    return not adds or not left or bool(left & right) or (not right and len(left) == 1)


def _compared(worked: list[Token], shown: list[Token]) -> Equation | None:
    try:
        left, right = values(worked), values(shown)
    except Unreadable:
        return None
    if not right:
        return None
    holds = any(_equal(value, number, shown) for value in left for number in right)
    if not holds and len(shown) > 1 and shown[0].kind == "number" and shown[1].kind == "operator":
        holds = any(_equal(value, number, shown[:1]) for value in left for number in values(shown[:1]))
    if not holds and any(token.decimals == 3 and 1 <= token.value < 1000 for token in (*worked, *shown)):
        return None  # where a point separates thousands, 1.200 is no decimal number
    span = (worked[0].span[0], shown[-1].span[1])
    return Equation(float(left[0]) if left else math.nan, float(right[0]), holds, span)


def _equal(value: Fraction, shown: Fraction, written: Sequence[Token]) -> bool:
    """Is the number shown the value, as far as it is written out?"""
    if abs(value - shown) <= abs(value) * FLOAT_ERROR:
        return True
    if len(written) > 1:
        return abs(value - shown) <= abs(value) / 50  # numbers in a sum may have been rounded on the way
    decimals = written[0].decimals + 2 * (written[0].percent and shown != written[0].value)
    step = Fraction(1, 10**decimals)
    off = value - shown
    if not decimals:
        return value.denominator > 1 and abs(off) < 1
    return abs(off) <= step / 2 or (abs(off) < step and abs(shown) < abs(value))
