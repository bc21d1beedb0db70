"""Numbers in the answer that come from nowhere."""

import re
from collections.abc import Iterator
from decimal import Decimal

from classifiers import text as texts
from classifiers.api import DraftEvidence, Span
from classifiers.verifiers.problem import Problem

_CODE = re.compile(r"```.*?(?:```|\Z)|\b\w{1,20}://\S+", re.DOTALL)
_LIST_MARKER = re.compile(r"^[^\S\n]*(?:[#>*-]+[^\S\n]*)?\(?\d{1,3}[.)](?=\s)", re.MULTILINE)
_NUMBER = re.compile(
    r"(?=[\d$€£.])"  # looked at first, which leaves most of a text's places in a third of the time
    r"(?:(?<![\w.,])[$€£]?(\d{1,3}(?:,\d{3})+(?!\d)|\d{1,30})(\.\d{1,30})?(?![\d_])|(?<![\w.])\.\d{1,30}(?!\w))"
)
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBER_OF = {word: str(number) for number, word in enumerate(_TEENS, 13)} | {
    word: str(10 * number) for number, word in enumerate(_TENS, 2)
}
_WORD = re.compile(
    rf"\b((?ai:{'|'.join(_NUMBER_OF)}))\b"
)  # ASCII's small and capital letters: no other s is a key above
_MAY_BE_SPELLED = re.compile(
    r"[tT](?:[eE]{2}[nN]|[yY])\b"
)  # how each of them ends, which is found in a sixth of the time
_BEHIND_EQUALS = re.compile(r"[=≈]\s*[-$€£]*\s*\Z")
_USUAL = {str(number) for number in (*range(13), 24, 30, 52, 60, 100, 365, 1000)}  # months, hours, days, percent


def numbers(evidence: DraftEvidence) -> Problem | None:
    """Every number in the answer stands in the conversation, is usual knowledge, or is worked out in an equation.

    Numbers up to twelve and the sizes of units (60 minutes, 365 days, 100 percent) are usual, and a given percentage may be
    written as a share or taken from or added to the whole. Where the conversation has no two numbers, its answer is
    knowledge and not worked out, and nothing is said. A hint: numbers worked out in the head come from nowhere too.
    """
    text = _LIST_MARKER.sub(_blank, evidence.text)
    if "```" in text or "://" in text:
        text = _CODE.sub(_blank, text)
    found = list(_numbers(text))
    if all(number in _USUAL for number, _ in found):
        return None
    given = {number for turn in evidence.messages for number in _given(texts.text_of(turn))}
    if len(given) < 2:
        return None
    known = given | _USUAL | {share for number in given for share in _shares(number)}
    known |= {number for number, (start, _) in found if _BEHIND_EQUALS.search(text, max(0, start - 8), start)}
    stray = next(((number, span) for number, span in found if number not in known), None)
    return None if stray is None else Problem(f"expected numbers given or worked out, got {stray[0]}", stray[1])


def _shares(number: str) -> Iterator[str]:
    """What a number means as a percentage: 20 is 0.2, leaves 80 or 0.8, makes 120 or 1.2."""
    value = Decimal(number)
    if value < 1000:
        for percent in (value, 100 - value, 100 + value):
            yield _plain(str(percent))
            yield _plain(f"{percent / 100:f}")


def _given(text: str) -> Iterator[str]:
    yield from (number for number, _ in _numbers(text))
    if _MAY_BE_SPELLED.search(text):
        yield from (_NUMBER_OF[word[1].lower()] for word in _WORD.finditer(text))


def _numbers(text: str) -> Iterator[tuple[str, Span]]:
    """Numbers as they would be written without signs, separators and idle zeros."""
    for match in _NUMBER.finditer(text):
        yield _plain(match[0].lstrip("$€£").replace(",", "")), match.span()


def _plain(number: str) -> str:
    whole, _, decimals = number.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])
