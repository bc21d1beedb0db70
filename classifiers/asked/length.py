"""Read how long an answer should be."""

import re
from collections.abc import Iterator

from classifiers.api import Constraint
from classifiers.asked.amount import Amount, amounts
from classifiers.asked.request import Request

HINTS = ("word", "sentence", "paragraph", "character", "***", "asterisk", "divider")
_WORDS = re.compile(r"\bwords?\b")
_SENTENCES = re.compile(r"\bsentences?\b")
_PARAGRAPHS = re.compile(r"\bparagraphs?\b")
_DIVIDED = re.compile(r"\b(?:paragraph|section|part|stanza|verse)s?\b")
_CHARACTERS = re.compile(r"\bcharacters?\b")
_OF_A_PART = re.compile(
    r"\b(?:each|every|per|first|last|following|these|those|both|title|subject|heading|line|stanza|verse|bullet|point)\b"
    r"[^,;]{0,25}$"
)
_OF_PARTS = re.compile(
    r"""\s*(?:each(?!\s+(?:of\s+which\s+)?(?:separat|divid))|per|in\s+each|every|in\s+the\s+(?:first|last)
    |(?:or\s+\w+\s+)?(?:in|with)\s+(?:all\s+)?(?:capital|upper)
    |(?:that|which)\s+(?:start|begin|end|rhyme|contain|are|mean)|from|starting|beginning
    |of\s+(?:the|these|those|them))\b""",
    re.VERBOSE,
)
_OF_ANOTHER = re.compile(r"\b(?:was|were|wrote|written|how\s+many|i\s+have)\b")  # a text there is already
_CAPITAL = re.compile(r"\b(?:capital|upper|caps)")
_IN = re.compile(r"\b(?:in|into|within)\s*$")
_DIVIDER = re.compile(r"(?<!\*)\*\*\*(?!\*)|\b(?:three|3)\s+asterisks?\b|\bmarkdown\s+divider")


def read(request: Request) -> Iterator[Constraint]:
    """Words, sentences, paragraphs and characters of the whole answer; those of each of its parts are left out."""
    for noun, kind in ((_WORDS, "words"), (_SENTENCES, "sentences"), (_CHARACTERS, "characters")):
        for amount in amounts(request, noun):
            bare = not amount.said and not (kind == "sentences" and _IN.search(request.before(amount.start)))
            if not bare and _of_the_whole(request, amount):
                yield request.found(kind, (amount.start, amount.end), low=amount.low, high=amount.high)
    divider = _DIVIDER.search(request.plain)
    for amount in amounts(request, _DIVIDED if divider else _PARAGRAPHS):
        if _of_the_whole(request, amount):
            yield request.found(
                "paragraphs",
                (amount.start, amount.end),
                low=amount.low,
                high=amount.high,
                separator="***" if divider else None,
            )
            break


def _of_the_whole(request: Request, amount: Amount) -> bool:
    return not (
        _OF_A_PART.search(request.before(amount.start, 40))
        or _OF_ANOTHER.search(request.before(amount.start))
        or _OF_PARTS.match(request.after(amount.end))
        or _CAPITAL.search(amount.between)
    )
