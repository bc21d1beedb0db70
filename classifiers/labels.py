"""Is a draft as good as the answer it is compared with? Labels for calibration, from shadow refinement or corrected texts.

`compare` asks three questions, the cheapest first, and stops at the first that decides:

1. exact: are both texts the same once case, spaces, Markdown, articles and closing marks are gone (SQuAD's normalisation, Rajpurkar et al.
   2016, that keeps the marks inside)?
2. numbers: does the reference end in a number, as an answer to a sum does, and is the draft's final number equal to it?
3. judge: what a function given by the caller says.

A label compares, it doesn't know the truth: where the reference is wrong, a draft that agrees with it is labelled good.
"""

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

from msgspec import Struct

Judge = Callable[[str, str], float | bool | None]  # (draft, reference) -> P(as good), or yes or no, or None: can't tell

LIKELY = 0.5  # of a judge's probability: from here on the draft is good

LONGEST_CHARS = 20_000  # of a text that is compared here; a longer one is left to the judge
MOST_DIGITS = 1000  # of a number, with its marks; Python refuses to read longer ones

_EMPHASIS = re.compile(
    r"(?<![\w*])(?P<stars>\*{2,3})(?=[^\s*])(?P<bold>[^\n*]{1,500})(?<!\s)(?P=stars)(?![\w*])"  # not 2**3
    r"|(?<!\w)__(?=[^\s_])(?P<words>[^\n_]{1,200}\s[^\n_]{1,200})(?<!\s)__(?!\w)"  # not __init__
    r"|~~|`+"
)
_BLOCK_MARK = re.compile(r"^[^\S\n]{0,3}(?:#{1,6}[^\S\n]+|[-*+>][^\S\n]+(?![\d\s$€£.\u2212-]))", re.MULTILINE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ENDS = " \n.,;:!?\"'\u2018\u2019\u201c\u201d()[]"
_LIST_MARK = re.compile(r"^[^\S\n]*\(?\d{1,2}[.)]\s+", re.MULTILINE)  # of an item, no number of the answer's
_NUMBER = re.compile(
    r"""(?<![\w.])(?P<sign>[-−](?=[$€£¥\d.]))?[$€£¥]?\s?
        (?: (?P<hour>\d{1,2}):(?P<minute>[0-5]\d)\b
          | \\[dt]?frac\{(?P<over>\d+)\}\{(?P<under>\d+)\}
          | (?P<whole>\d{1,3}(?:[,'\u2019\u00a0\u202f]\d{3})+(?!\d)|\d+)?(?P<part>(?<=\d)[.,]\d+|\.\d+)?
            (?:\s?/\s?(?P<divisor>[1-9]\d*)(?![\d/]))?
            (?:\s(?P<scale>thousand|million|billion)\b)?
        )""",
    re.VERBOSE | re.IGNORECASE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_MARKED = re.compile(
    r"####\s*(.+)|\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}|\banswer(?:\s+is|\s*[:=])+\s*(.+)", re.IGNORECASE
)
_QUALIFIED = re.compile(
    r"(?P<qualifier>\b(?:not|never|cannot|than|least|most|under|except)\b|n['\u2019]t\b|[<>≤≥≠])[^.!?\d\n]{0,20}\Z",
    re.IGNORECASE,
)
QUALIFIER_CHARS = 40  # looked at before a number


class Label(Struct, frozen=True, kw_only=True):
    """What a comparison found."""

    good: bool | None  # None: it can't tell
    by: Literal["exact", "numbers", "judge"] | None  # what decided; None: nothing did
    reason: str  # for people


def compare(draft: str, reference: str, judge: Judge | None = None) -> Label:
    r"""Label a draft by a reference: the refiner's answer to the same request, or a text that a person corrected.

    Numbers decide only where the reference's last sentence holds one, or it marks its answer ("#### 42", "\boxed{42}", "the answer is 42"); they are
    compared as exact values, whatever unit, currency, percent sign or thousands separator stands by: 1,000.0 is $1000, and 0.33 is not 1/3. How
    the draft came to its number doesn't count. So two texts that end in the same year, and otherwise differ, are taken to
    agree: where requests are of that kind, compare with a judge alone. A number that is denied or is a bound ("not 42", "> 5") and one
    that isn't are not compared, nor are texts of more than LONGEST_CHARS: these are the judge's.

    Raises:
        ValueError: the judge returned a number outside 0 to 1.
    """
    if not draft.strip() and reference.strip():
        return Label(good=False, by="exact", reason="expected an answer, got an empty draft")
    if max(len(draft), len(reference)) <= LONGEST_CHARS:
        if normalised(draft) == normalised(reference):
            return Label(good=True, by="exact", reason="both texts are the same")
        expected, got = _final(reference, closing=True), _final(draft)
        if expected and got and expected.qualifier == got.qualifier:
            good = got.value == expected.value
            same, other = f"both end in {_said(got.value)}", f"expected {_said(expected.value)}, got {_said(got.value)}"
            return Label(good=good, by="numbers", reason=same if good else other)
    found = judge(draft, reference) if judge else None
    if found is None:
        return Label(good=None, by=None, reason="the texts differ, and neither numbers nor a judge decide")
    if not 0 <= found <= 1:
        raise ValueError(f"expected of a judge a probability, True, False or None, got {found!r}")
    return Label(good=found >= LIKELY, by="judge", reason=f"the judge says {found}")


def normalised(text: str) -> str:
    """The text in NFKC, folded case and single spaces, without Markdown's marks, articles, and marks at its ends.

    Where this leaves nothing ("...", "A"), it is kept as far as something is left.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = _plain(_BLOCK_MARK.sub("", folded))
    forms = (_ARTICLES.sub(" ", bare), bare, folded)
    return next(
        (form for form in (" ".join(form.split()).strip(_ENDS) for form in forms) if form), " ".join(folded.split())
    )


def final_number(text: str, *, closing: bool = False) -> Fraction | None:
    """The number that a text gives as its answer: the last one it marks as such, or else the last one in it.

    Args:
        text: of any kind.
        closing: an unmarked number counts in the last sentence only.

    Returns: its exact value; hours and minutes as hours; None if there is no such number.
    """
    found = _final(text, closing=closing)
    return None if found is None else found.value


class _Final(NamedTuple):
    value: Fraction
    qualifier: str  # "not", "<": what makes the number another answer than the number alone; "" for nothing


def _final(text: str, *, closing: bool = False) -> _Final | None:
    text = _plain(text)
    for found in reversed(list(_MARKED.finditer(text))):
        if numbers := _numbers(next(group for group in found.groups() if group)):
            return numbers[0]
    if closing:
        text = re.split(r"(?<=[.!?])\s+|\n", text.strip())[-1]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[_Final]:
    text = _LIST_MARK.sub("", text)
    numbers = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            before = _QUALIFIED.search(text[max(0, match.start() - QUALIFIER_CHARS) : match.start()])
            qualifier = before["qualifier"].lower() if before else ""
            numbers.append(_Final(value, "not" if qualifier[:1] in "nc" and qualifier else qualifier))
    return numbers


def _plain(text: str) -> str:
    """Without Markdown's marks around words."""
    return _EMPHASIS.sub(lambda mark: mark["bold"] or mark["words"] or "", text)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MOST_DIGITS:
        return None
    hour, over, whole, part = match["hour"], match["over"], match["whole"], match["part"]
    if hour:
        value = Fraction(hour) + Fraction(int(match["minute"]), 60)
    elif over:
        if not int(match["under"]):
            return None
        value = Fraction(int(over), int(match["under"]))
    elif whole or part:
        digits = re.sub(r"\D", "", whole or "") or "0"
        value = Fraction(Decimal(digits + (part or "").replace(",", "."))) / int(match["divisor"] or 1)
        value *= _SCALES.get((match["scale"] or "").lower(), 1)
    else:
        return None
    return -value if match["sign"] else value


def _said(value: Fraction) -> str:
    try:
        return f"{float(value):.10g}"
    except OverflowError:  # beyond 1.8e308
        return f"{Decimal(value.numerator) / value.denominator:.10g}"
