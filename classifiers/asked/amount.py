"""Amounts in words: "at least five", "3 to 5", "200+", "no more than two", as ranges."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from classifiers.asked.request import Request

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NAMED = {word: value for value, word in enumerate(_UNITS.split())} | {
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
    "single": 1, "dozen": 12, "couple": 2,
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1000}
_NUMBER = rf"(?:\d{{1,3}}(?:,\d{{3}})+|\d{{1,6}}|{'|'.join(sorted(_NAMED, key=len, reverse=True))})(?:\s+(?:hundred|thousand))?"
_LOW = r"at\s+least|no\s+fewer\s+than|no\s+less\s+than|not\s+less\s+than|(?:a\s+)?minimum(?:\s+of)?|min\.?|>="
_ABOVE = r"more\s+than|over|greater\s+than|above|in\s+excess\s+of|>"
_HIGH = (
    r"at\s+most|no\s+more\s+than|not\s+more\s+than|up\s+to|(?:a\s+)?maximum(?:\s+of)?|max\.?|within|"
    r"(?:not|n't|never)\s+exceed|not\s+exceeding|limit(?:ed)?(?:\s+\w+){0,3}\s+to|<="
)
_BELOW = r"less\s+than|fewer\s+than|under|below|lower\s+than|<"
_EXACT = r"exactly|precisely|only|just"
_ABOUT = r"about|around|approximately|approx\.?|roughly|nearly|almost|circa|some|~"
_MORE = r"\+|or\s+more|or\s+longer|or\s+above|or\s+greater|plus|minimum|at\s+least"
_FEWER = r"or\s+less|or\s+fewer|or\s+shorter|or\s+under|or\s+below|max(?:imum)?|at\s+most|tops"
_CUES = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("low", _LOW), ("high", _HIGH), ("above", _ABOVE), ("below", _BELOW), ("exact", _EXACT), ("about", _ABOUT),
    )
)  # fmt: skip
_CUE = "|".join((_LOW, _HIGH, _ABOVE, _BELOW, _EXACT, _ABOUT, "between", "from"))
_AMOUNT = (
    rf"(?:(?<![\w.])(?P<cue>{_CUE})\s*(?:a\s+)?(?:total\s+of\s+)?)?(?<![\w.,$#-])(?P<first>{_NUMBER})(?!\w)"
    rf"(?:\s*(?:-|\u2013|to|and|or)\s*(?P<second>{_NUMBER})(?!\w))?\s*(?P<more>{_MORE}|{_FEWER})?"
)
_BEFORE = re.compile(rf"{_AMOUNT}[\s-]*(?:of\s+)?(?P<between>(?:[a-z-]{{1,20}}\s+){{0,3}})$")
_BEHIND = re.compile(rf"[^.!?\n]{{0,60}}?{_AMOUNT}")
_AFTERTHOUGHT = re.compile(rf"\s*\(?(?P<more>{_MORE}|{_FEWER})")
_NUMBER_OF = re.compile(r"\bnumber\s+of\s+(?:\w+\s+)?$")
_ONCE = {"once": "1 ", "twice": "2 ", "thrice": "3 "}
_ALTERNATIVE = re.compile(rf"\s+or\s+{_NUMBER}\b")
_LESS = re.compile(_FEWER)
_NO_MODIFIER = re.compile(
    r"\b(?:times?|to|that|which|in|with|for|and|or|is|are|using|per|each|every|these|those|the)\b"
)


class Amount(NamedTuple):
    """So many of something."""

    low: int | None
    high: int | None
    said: bool  # whether the range is said ("at least"), or there is just a number
    between: str  # the words between the number and what is counted
    start: int
    end: int


def amounts(request: Request, noun: re.Pattern[str]) -> Iterator[Amount]:
    """The amounts of a noun: "at least five short paragraphs", "the number of words should be 250 or more".

    "once" and "twice" are nouns that bring their number. "about 200" is no range and left out.
    """
    yield from (amount for _, amount in amounts_of(request, noun))


def amounts_of(request: Request, noun: re.Pattern[str]) -> Iterator[tuple[re.Match[str], Amount]]:
    """The same, each with what the noun matched."""
    for match in noun.finditer(request.plain):
        amount = _amount_at(request, match)
        if amount:
            yield match, amount


def _amount_at(request: Request, noun: re.Match[str]) -> Amount | None:
    before = request.before(noun.start())
    start = noun.start() - len(before)
    found = _BEFORE.search(before + _ONCE.get(noun[0], ""))
    end = noun.end()
    if found:
        afterthought = _AFTERTHOUGHT.match(request.after(end))
        more = found["more"] or (afterthought["more"] if afterthought else None)
        end += afterthought.end() if afterthought else 0
        start += found.start()
        between = found["between"]
        if _NO_MODIFIER.search(between) or _ALTERNATIVE.match(request.after(end)):
            return None
    elif _NUMBER_OF.search(before) and (found := _BEHIND.match(request.after(end))):
        more = found["more"]
        between = found[0][: found.start("first")]
        start, end = noun.start(), end + found.end()
    else:
        return None
    bounds = _bounds(found["cue"], _value(found["first"]), _value(found["second"]), more)
    if bounds is None:
        return None
    return Amount(*bounds, said=bool(found["cue"] or found["second"] or more), between=between, start=start, end=end)


def _bounds(
    cue: str | None, first: int | None, second: int | None, more: str | None
) -> tuple[int | None, int | None] | None:
    if first is None:
        return None
    name = next((name for name, pattern in _CUES if cue and pattern.fullmatch(cue)), "")
    if name == "about":
        return None
    if second is not None:
        return (first, second) if first <= second else None
    if more and not name:
        return (None, first) if _LESS.fullmatch(more) else (first, None)
    ranges = {
        "low": (first, None), "above": (first + 1, None), "high": (None, first), "below": (None, max(first - 1, 0)),
    }  # fmt: skip
    return ranges.get(name, (first, first))


def _value(number: str | None) -> int | None:
    if not number:
        return None
    count, *scale = number.split()
    value = _NAMED[count] if count in _NAMED else int(count.replace(",", ""))
    return value * _SCALES[scale[0]] if scale else value
