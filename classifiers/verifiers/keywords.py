"""Words and letters that an answer must, may not, or may only so often contain."""

import re
from typing import Annotated

from msgspec import Meta

from classifiers.verifiers.count import High, Low, outside
from classifiers.verifiers.problem import Problem

Phrase = Annotated[str, Meta(min_length=1)]
Phrases = Annotated[tuple[Phrase, ...], Meta(min_length=1)]
Letter = Annotated[str, Meta(min_length=1, max_length=1)]


def keywords(text: str, *, words: Phrases) -> Problem | None:
    """Each stands somewhere, in any case, be it as part of a longer word: "cat" is in "Cats"."""
    missing = [word for word in words if not re.search(re.escape(word), text, re.IGNORECASE)]
    return Problem(f"expected {_listed(words)}, got none of {_listed(missing)}") if missing else None


def forbidden(text: str, *, words: Phrases) -> Problem | None:
    """None stands anywhere as whole words, in any case: "cat" isn't in "cats"."""
    for word in words:
        match = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        if match:
            return Problem(f'expected no "{word}", got "{match[0]}"', match.span())
    return None


def keyword_frequency(text: str, *, word: Phrase, low: Low = 0, high: High = None) -> Problem | None:
    """Occurrences of one word or phrase, in any case, be it as part of a longer word."""
    found = [match.span() for match in re.finditer(re.escape(word), text, re.IGNORECASE)]
    return outside(found, f'times "{word}"', low, high)


def letter_frequency(text: str, *, letter: Letter, low: Low = 0, high: High = None) -> Problem | None:
    """Occurrences of one letter or sign, in any case."""
    found = [(at, at + 1) for at, character in enumerate(text) if character.lower() == letter.lower()]
    return outside(found, f'times "{letter}"', low, high)


def _listed(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
