"""The working a text shows: its numbers, its sums, and where their operands come from. Read fast and roughly, for features.

`classifiers/verifiers/arithmetic.py` says whether a sum is right, with far more care; here it only counts what was done.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

MOST_CHARS = 12_000  # of a text; of a longer one the first and the last half as many are read
USUAL = frozenset(map(float, (*range(1, 13), 24, 30, 52, 60, 100, 365, 1000))) | {0.25, 0.5}  # of units and halves
ADDING, TAKING, MULTIPLYING, DIVIDING = "+", "-−\u2013", "*x×", "/÷"

_AMOUNT = r"\d[\d,]{0,15}(?:\.\d{1,12})?"
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_NUMBER = re.compile(rf"(?=[\d$€£.])(?<![\w.])[$€£]?({_AMOUNT}|\.\d{{1,12}})")  # the look ahead is the quicker one
_OPERATOR = r"(?:\\?[*x×]|\\times|\\div|[+\-−\u2013/÷])"
# No two parts that follow each other may match the same characters: a sum without "=" would take exponential time.
_CURRENCY = r"(?:[$€£(]\s?)?"
_TERM = rf"{_AMOUNT}(?:\s?%)?(?:\s?\))?(?:\s[^\W\d_]{{1,20}}){{0,3}}"  # with up to three words of unit: "3 cups"
_SHOWN = rf"=\s*(?:[$€£]\s*)?(-?{_AMOUNT})"
_SUM = re.compile(rf"((?:{_CURRENCY}{_TERM}\s*{_OPERATOR}\s*){{1,16}}{_CURRENCY}{_TERM})\s*{_SHOWN}")
_NOTE = re.compile(rf"<<([^<>=\n]{{1,200}})=[^<>\n]{{0,200}}?(-?{_AMOUNT})>>")  # a calculator's note: <<48/2=24>>
_NOTES = re.compile(r"<<[^<>\n]{0,400}>>")
_RESULT = re.compile(_SHOWN)
_BETWEEN = re.compile(rf"(?<=[\d)%])\s*({_OPERATOR})\s*(?=[$€£(\d])")
_SPELLED = {
    word: float(value)
    for value, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 1)
}
_SPELLED |= {"half": 0.5, "quarter": 4.0, "dozen": 12.0, "week": 7.0, "weeks": 7.0}
_SPELLED |= dict.fromkeys(("twice", "double", "doubled", "pair", "couple"), 2.0)
_SPELLED |= dict.fromkeys(("third", "thirds", "triple", "tripled", "thrice"), 3.0)


class Sum(NamedTuple):
    """`operands = result`."""

    operands: tuple[float, ...]
    result: float


class Given(NamedTuple):
    """The numbers that a request gives."""

    written: list[float]  # in digits, as they stand
    spelled: list[float]
    shares: dict[float, set[float]]  # of each that is written, rounded: what it may become as a percentage
    percentages: set[float]  # of all that are written


class Working(NamedTuple):
    """What a text calculates."""

    numbers: list[float]  # all of them, as they stand
    results: list[float]  # behind an equals sign
    operators: str  # one character each, between numbers
    sums: list[Sum]
    notes: int  # calculator's notes
    written: int  # sums outside of notes

    def count(self, operators: str) -> int:
        """How many of these operators are there?"""
        return sum(map(self.operators.count, operators))


class Sources(NamedTuple):
    """Where the operands of a working's sums come from, in this order: the first that fits counts."""

    earlier: int  # a result of an earlier sum
    given: int  # the request, or a percentage of it
    usual: int  # sizes of units, small numbers
    nowhere: int
    unused_results: int  # of all sums but the last


def bounded(text: str) -> str:
    """At most MOST_CHARS of a text, its middle left out."""
    half = MOST_CHARS // 2
    return text if len(text) <= MOST_CHARS else f"{text[:half]}\n{text[-half:]}"


def words_in(text: str) -> list[str]:
    """Every word in small letters: letters, and an apostrophe between them."""
    return _WORD.findall(text.lower())


def numbers_in(text: str) -> list[float]:
    """Every number that is written in digits, without its sign; 1,000 is one number."""
    return [_value(number) for number in _NUMBER.findall(text)]


def spelled_in(words: Iterable[str]) -> list[float]:
    """What words like "three", "twice" and "dozen" stand for; a third, which divides by three, is 3."""
    return [_SPELLED[word] for word in words if word in _SPELLED]


def given(text: str, words: Iterable[str]) -> Given:
    """Read the numbers of a request: of its text, and of its words those that stand for one."""
    written = numbers_in(text)
    shares = {number: percentages([number]) for number in map(rounded, written)}
    return Given(written, spelled_in(words), shares, percentages(written))


def working(text: str) -> Working:
    """Read a text's working. Sums in calculator's notes count where fewer are written out."""
    plain = _NOTES.sub("", text)
    written = _sums(_SUM, plain) if "=" in plain else []
    noted = _sums(_NOTE, text) if "<<" in text else []
    return Working(
        numbers=numbers_in(plain),
        results=[_value(match[1]) for match in _RESULT.finditer(plain)],
        operators="".join(_character(match[1]) for match in _BETWEEN.finditer(plain)),
        sums=written if len(written) >= len(noted) else noted,
        notes=len(noted),
        written=len(written),
    )


def percentages(numbers: Iterable[float]) -> set[float]:
    """What numbers may become as percentages: 20 is 0.2, leaves 80 or 0.8, makes 120 or 1.2."""
    small = [number for number in numbers if number <= 400]
    shares = {share for n in small for share in (100 - n, 100 + n, n / 100, 1 - n / 100, 1 + n / 100)}
    return {rounded(share) for share in shares}


def sources(sums: Iterable[Sum], given: Collection[float]) -> Sources:
    """Follow each operand back: `given` are the request's numbers, rounded, and their percentages."""
    results: list[float] = []
    used: set[float] = set()
    earlier = asked = usual = nowhere = 0
    for one in sums:
        for operand in map(rounded, one.operands):
            if operand in results:
                earlier += 1
                used.add(operand)
            elif operand in given:
                asked += 1
            elif operand in USUAL:
                usual += 1
            else:
                nowhere += 1
        results.append(rounded(one.result))
    return Sources(earlier, asked, usual, nowhere, sum(result not in used for result in results[:-1]))


def rounded(number: float) -> float:
    """To four decimals, so that equal numbers compare equal."""
    return round(number, 4)


def _sums(pattern: re.Pattern[str], text: str) -> list[Sum]:
    return [Sum(tuple(numbers_in(match[1])), _value(match[2])) for match in pattern.finditer(text)]


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _character(operator: str) -> str:
    return {"\\times": "×", "\\div": "÷"}.get(operator, operator[-1])
