"""What a request asks of its answer's form, read out of its text by rules: one file a family, as in `classifiers.verifiers`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from classifiers.api import Constraint, Span
from classifiers.asked import casing, edges, keywords, language, layout, length, mention, punctuation
from classifiers.asked.request import WINDOW, Request
from classifiers.text import text_of

_FAMILIES = (length, keywords, casing, punctuation, language, edges, layout)
_STANDING = frozenset(
    ("json", "language", "lowercase", "uppercase", "forbidden_marks", "words", "sentences", "ends_with")
)
_CONDITION = re.compile(r"\b(?:if|unless)\b")
_OF_SOME_ANSWERS = re.compile(r"\b(?:if|when|whenever|unless|except)\b")
_LISTS = frozenset(("keywords", "forbidden"))
_RANGED = frozenset(("low", "high"))


def read_constraints(messages: Sequence[Mapping[str, Any]]) -> tuple[Constraint, ...]:
    """Constraints of the last user turn, and the standing ones of system turns that the last turn doesn't set otherwise.

    Spans are places in the last user turn; a constraint of a system turn has none. What is quoted, fenced, tagged or pasted
    below words like "the following text:" is not the request and not read; nor is what stands behind a condition ("if ...") or is only a mention.
    Of a long turn the first and the last `WINDOW` characters are read, by patterns without nested repetition.
    """
    asked = []
    last = next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")
    for offset, part in _windows(last):
        asked += [_moved(constraint, offset) for constraint in _read(Request(part))]
    own = {constraint.kind for constraint in asked}
    for message in messages:
        if message.get("role") in ("system", "developer"):
            for _, part in _windows(text_of(message)):
                standing = (constraint for constraint in _standing(Request(part)) if constraint.kind not in own)
                asked += standing
    return tuple(_merged(asked))


def _windows(text: str) -> list[tuple[int, str]]:
    if len(text) <= 2 * WINDOW:
        return [(0, text)]
    return [(0, text[:WINDOW]), (len(text) - WINDOW, text[-WINDOW:])]


def _read(request: Request) -> Iterator[Constraint]:
    """What is asked; where a family met a mere mention, it looks again with that sentence out of the way."""
    mentioned = []
    for constraint, span in _found(request):
        if mention.is_mention(request, constraint, span):
            start, end = request.sentence(span)
            mentioned.append((start, end - 1))  # its mark stays, as a boundary
        else:
            yield constraint
    if mentioned:
        again = Request(request.text, hidden=tuple(mentioned))
        yield from (constraint for constraint, span in _found(again) if not mention.is_mention(again, constraint, span))


def _found(request: Request) -> Iterator[tuple[Constraint, Span]]:
    for family in _FAMILIES:
        if request.holds(*family.HINTS):
            for constraint in family.read(request):
                if constraint.span and not _CONDITION.search(request.before(constraint.span[0])):
                    yield constraint, constraint.span


def _standing(request: Request) -> Iterator[Constraint]:
    for constraint in _read(request):
        start, end = constraint.span or (0, 0)
        sentence = request.before(start, 200) + request.after(end)
        if constraint.kind in _STANDING and not _OF_SOME_ANSWERS.search(sentence):
            yield Constraint(kind=constraint.kind, args=constraint.args)


def _moved(constraint: Constraint, offset: int) -> Constraint:
    start, end = constraint.span or (0, 0)
    return Constraint(kind=constraint.kind, args=constraint.args, span=(start + offset, end + offset))


def _merged(asked: Sequence[Constraint]) -> Iterator[Constraint]:
    """Each once; keywords as one list, bounds of the same count as one range; where they contradict, the first stands."""
    merged: dict[tuple[str, str], Constraint] = {}
    for constraint in asked:
        same = {
            name: value
            for name, value in constraint.args.items()
            if name not in _RANGED and constraint.kind not in _LISTS
        }
        key = (constraint.kind, repr(sorted(same.items())))
        first = merged.setdefault(key, constraint)
        if constraint.kind in _LISTS and first is not constraint:
            words = dict.fromkeys((*first.args["words"], *constraint.args["words"]))
            merged[key] = Constraint(kind=first.kind, args={"words": tuple(words)}, span=first.span)
            continue
        bounds = _narrowed(first.args, constraint.args)
        if first is not constraint and bounds is not None:
            merged[key] = Constraint(kind=first.kind, args=same | bounds, span=first.span)
    counted = any("paragraphs" in constraint.args for constraint in merged.values())  # says how many there are as well
    yield from (constraint for constraint in merged.values() if not (counted and constraint.kind == "paragraphs"))


def _narrowed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, int] | None:
    lows = [args["low"] for args in (one, other) if "low" in args]
    highs = [args["high"] for args in (one, other) if "high" in args]
    bounds = ({"low": max(lows)} if lows else {}) | ({"high": min(highs)} if highs else {})
    return None if lows and highs and bounds["low"] > bounds["high"] else bounds
