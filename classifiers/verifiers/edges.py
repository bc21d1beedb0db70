"""How an answer, or a paragraph of it, begins and ends."""

import re
from typing import Annotated

from msgspec import Meta

from classifiers.verifiers.keywords import Phrase
from classifiers.verifiers.problem import Problem

Ordinal = Annotated[int, Meta(ge=1)]
_SHOWN = 40  # characters of an answer in a reason
_PARAGRAPH = re.compile(r"(?:[^\r\n]|\r?\n(?!\r?\n))*(?:\r?\n\r?\n|$)")
_FIRST_WORD = re.compile(r"[^\s.,?!'\"]*")


def starts_with(text: str, *, phrase: Phrase) -> Problem | None:
    """White space, quotes and marks of emphasis before it don't count, nor does case."""
    start = len(text) - len(text.lstrip(" \t\r\n\"'“*_"))
    if text[start:].lower().startswith(phrase.strip().lower()):
        return None
    return Problem(
        f'expected "{phrase}" at the start, got "{text[start : start + _SHOWN]}"',
        (start, min(start + _SHOWN, len(text))),
    )


def ends_with(text: str, *, phrase: Phrase) -> Problem | None:
    """White space and double quotes behind it don't count, nor does case."""
    ending = text.strip().strip('"')
    if ending.lower().endswith(phrase.strip().lower()):
        return None
    end = len(text.rstrip())
    return Problem(f'expected "{phrase}" at the end, got "{ending[-_SHOWN:]}"', (max(0, end - _SHOWN), end))


def quoted(text: str) -> Problem | None:
    """The whole answer stands in double quotation marks."""
    stripped = text.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] == '"':
        return None
    return Problem(f'expected double quotes around the whole answer, got "{stripped[:1]}" and "{stripped[-1:]}"')


def postscript(text: str, *, marker: Phrase = "P.S.") -> Problem | None:
    """The marker stands somewhere, in any case; behind each of its full stops there may be a blank."""
    stripped = marker.strip()
    pattern = r"\.\s?".join(map(re.escape, stripped.rstrip(".").split("."))) + (r"\." if stripped.endswith(".") else "")
    return None if re.search(pattern, text, re.IGNORECASE) else Problem(f'expected "{stripped}", got none')


def paragraph_first_word(
    text: str, *, paragraph: Ordinal, word: Phrase, paragraphs: Ordinal | None = None
) -> Problem | None:
    """The paragraph of that number, from 1, begins with the word; with `paragraphs`, there are exactly so many.

    Paragraphs are separated by two line breaks. Case and marks around the word don't count.
    """
    parts = [match.span() for match in _PARAGRAPH.finditer(text)]
    filled = sum(bool(text[slice(*part)].strip()) for part in parts)
    if paragraphs is not None and filled != paragraphs:
        return Problem(f"expected exactly {paragraphs} paragraphs, got {filled}")
    start, end = parts[paragraph - 1] if paragraph <= filled else (0, 0)
    start += len(text[start:end]) - len(text[start:end].lstrip().lstrip("'").lstrip('"'))
    if start >= end:
        return Problem(f"expected text in paragraph {paragraph}, got none")
    first = _FIRST_WORD.match(text, start, end)
    got = first[0] if first else ""
    if got.lower() == word.lower():
        return None
    return Problem(f'expected paragraph {paragraph} to begin with "{word}", got "{got}"', (start, start + len(got)))


def repeats_prompt(text: str, *, prompt: Phrase) -> Problem | None:
    """The answer begins with the prompt, word for word but for case."""
    if text.strip().lower().startswith(prompt.strip().lower()):
        return None
    return Problem(f'expected the prompt first, got "{text.strip()[:_SHOWN]}"')
