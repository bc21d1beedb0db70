"""Small and capital letters."""

import re
from collections.abc import Callable

from classifiers.verifiers.count import High, Low, outside
from classifiers.verifiers.problem import Problem

_SEPARATORS = r"\s;@#$%&?!\"“”`\u2018\[\](){}<>…"
_TOKEN = re.compile(rf"[^{_SEPARATORS}]+")
_PARTS = re.compile(
    r"--+|\.\.\.+|[,:](?!\d)"
    r"|'(?=(?i:s|m|d|ll|re|ve)\b)|(?<=[A-Z])(?=N'T\b)"
    r"|(?<=\bGON)(?=NA\b)|(?<=\bWAN)(?=NA\b)|(?<=\bGOT)(?=TA\b)|(?<=\bCAN)(?=NOT\b)"
)


def lowercase(text: str) -> Problem | None:
    """Letters there are, and no capital one among those that have a case."""
    if text.islower():
        return None
    return _stray(text, str.isupper, "only small letters")


def uppercase(text: str) -> Problem | None:
    """Letters there are, and no small one among those that have a case."""
    if text.isupper():
        return None
    return _stray(text, str.islower, "only capital letters")


def capital_words(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Words all in capitals, by the Penn Treebank's rules: "I" is one, "WELL-KNOWN" is one, "DON'T" is two.

    Source: Marcus et al., "Building a Large Annotated Corpus of English", Computational Linguistics 19(2), 1993.
    """
    return outside(
        [span for span in _tokens(text) if text[slice(*span)].isupper()], "words in capital letters", low, high
    )


def _tokens(text: str) -> list[tuple[int, int]]:
    spans = []
    for token in _TOKEN.finditer(text):
        start = token.start()
        for part in _PARTS.finditer(text, *token.span()):
            spans.append((start, part.start()))
            start = part.end() if part[0] != "'" else part.start()
        spans.append((start, token.end()))
    return [(start, end) for start, end in spans if start < end]


def _stray(text: str, wrong: Callable[[str], bool], what: str) -> Problem:
    at = next((index for index, character in enumerate(text) if wrong(character)), None)
    if at is None:
        return Problem(f"expected {what}, got no letter that has a case")
    return Problem(f'expected {what}, got "{text[at]}"', (at, at + 1))
