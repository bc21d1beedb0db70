"""How an answer is laid out: lists, sections, titles, highlights, placeholders, several answers, JSON."""

import json as json_format
import re

from classifiers import text as texts
from classifiers.api import Span
from classifiers.verifiers.count import High, Low, outside
from classifiers.verifiers.keywords import Phrase, Phrases
from classifiers.verifiers.problem import Problem

TWO_RESPONSES = "******"  # stands between them
_BULLET = re.compile(r"[^\S\n]*(?:\*(?!\*)|-|•)")
_ITEM = re.compile(r"[^\S\n]*(?:[*+•](?!\*)|-(?!-)|\d{1,3}[.)](?!\d))")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
_STRONG = re.compile(r"\*\*[^\n*]*\*\*")
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)


def bullets(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Lines that begin with Markdown's "*" or "-", or with the sign "•"."""
    return outside(_lines(text, _BULLET), "bullet points", low, high)


def items(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Lines that begin with a bullet, or with a number and a point or bracket."""
    return outside(_lines(text, _ITEM), "list items", low, high)


def sections(text: str, *, marker: Phrase = "Section", low: Low = 0, high: High = None) -> Problem | None:
    """Places where the marker has a number behind it: "Section 1"."""
    found = [match.span() for match in re.finditer(rf"{re.escape(marker)}\s?\d+", text)]
    return outside(found, f'sections that begin with "{marker}" and a number', low, high)


def title(text: str) -> Problem | None:
    """Somewhere on a line stands something in double angular brackets: <<title>>."""
    for start, end in texts.lines(text):
        line = text[start:end]
        opening, closing = line.find("<<"), line.rfind(">>")
        if 0 <= opening < closing and line[opening:closing].strip("<> "):
            return None
    return Problem("expected a title in double angular brackets, got none")


def highlights(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Passages of one line in asterisks; one in double asterisks counts once."""
    spans = [match.span() for match in _HIGHLIGHT.finditer(text)] + [match.span() for match in _STRONG.finditer(text)]
    found = sorted(span for span in spans if text[slice(*span)].strip("*").strip())
    return outside(found, "highlighted sections", low, high)


def placeholders(text: str, *, low: Low = 0, high: High = None) -> Problem | None:
    """Square brackets that close on their line, such as [address]."""
    return outside([match.span() for match in _PLACEHOLDER.finditer(text)], "placeholders", low, high)


def two_responses(text: str) -> Problem | None:
    """Two answers that differ, with six asterisks between them."""
    parts = [part.strip() for part in text.split(TWO_RESPONSES)]
    if "" in parts[1:-1]:
        return Problem(f'expected an answer between each two "{TWO_RESPONSES}", got none')
    answers = [part for part in parts if part]
    if len(answers) != 2:
        return Problem(f'expected two answers separated by "{TWO_RESPONSES}", got {len(answers)}')
    return Problem("expected two different answers, got the same twice") if answers[0] == answers[1] else None


def one_of(text: str, *, options: Phrases) -> Problem | None:
    """At least one of the options stands in the answer, letter for letter."""
    if any(option in text for option in options):
        return None
    return Problem(f"expected one of {', '.join(options)}, got none of them")


def json(text: str) -> Problem | None:
    """The whole answer is one JSON value, be it in a code fence."""
    value = text.strip()
    opening = _FENCE.match(value)
    start = text.find(value) + (opening.end() if opening else 0)
    value = value[opening.end() if opening else 0 :].removesuffix("```")
    try:
        json_format.loads(value)
    except json_format.JSONDecodeError as error:
        at = start + error.pos
        return Problem(f"expected JSON, got: {error.msg} in line {error.lineno}", (at, min(at + 1, len(text))))
    except (ValueError, RecursionError):
        return Problem("expected JSON, got a number or nesting beyond every limit")
    return None


def _lines(text: str, beginning: re.Pattern[str]) -> list[Span]:
    return [(start, end) for start, end in texts.lines(text) if beginning.match(text, start, end)]
