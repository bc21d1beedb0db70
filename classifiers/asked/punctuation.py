"""Read which marks an answer should or should not contain."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint
from classifiers.asked.amount import amounts_of
from classifiers.asked.request import Request

MARKS = {
    "comma": ",",
    "semicolon": ";",
    "colon": ":",
    "question mark": "?",
    "exclamation mark": "!",
    "exclamation point": "!",
    "asterisk": "*",
}
HINTS = (*MARKS, "dashes")
_MARK = re.compile(
    r"\b(?:(comma|semicolon|colon|question mark|exclamation mark|exclamation point|asterisk)s?|dashes)\b"
)
_FORBIDDEN = re.compile(
    r"(?:\b(?:no|without|avoid|avoiding|refrain\s+from|not|never|zero|exclude|excluding|omit|free\s+of)|n't)\b"
    r"[^.!?;:\n]{0,40}$"
)
_REQUIRED = re.compile(r"\b(?:include|use|contain|add|with)\s+(?:at\s+least\s+one|an?|one)\s+$")
_INSTEAD = re.compile(r"\b(?:but|however|forget|hesitate|only)\b")
_SEPARATED = re.compile(r"\s*(?:symbols?\s*)?(?:-\s*)?separat|\s*(?:to|between)\s+separat")
_DASHES = "\u2014\u2013"


def read(request: Request) -> Iterator[Constraint]:
    """Marks of `MARKS` and dashes, named as such."""
    done = set()
    for match, amount in amounts_of(request, _MARK):
        if amount.said and match[1]:
            done.add(MARKS[match[1]])
            span = (amount.start, amount.end)
            yield request.found("letter_frequency", span, letter=MARKS[match[1]], low=amount.low, high=amount.high)
    for match in _MARK.finditer(request.plain):
        marks = MARKS[match[1]] if match[1] else _DASHES
        if marks in done or _SEPARATED.match(request.after(match.end())):
            continue
        before = request.before(match.start(), 60)
        forbidden = _FORBIDDEN.search(before)
        if forbidden and not _INSTEAD.search(forbidden[0]):
            done.add(marks)
            yield request.found("forbidden_marks", match.span(), marks=marks)
        elif _REQUIRED.search(before) and match[1]:
            done.add(marks)
            yield request.found("required_marks", match.span(), marks=marks)
